// Package deploy_test holds the manifests and the Dockerfile to what users and
// the rest of the project rely on.
package deploy_test

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// check says what is at a path of a manifest. See at for the path; want is
// JSON, and null is for what must not be there.
type check struct{ path, want string }

const (
	namespace = "Namespace metadata "
	daemonSet = "DaemonSet "
	template  = "DaemonSet spec template "
	pod       = template + "spec "
)

// editsNode is what holds for both DaemonSets and their container that edits
// the node's iptables.
func editsNode(name, container string) []check {
	c := pod + container + " "
	label := `{"app.kubernetes.io/name":"` + name + `"}`
	return []check{
		{namespace + "name", `"imds-guard"`},
		{namespace + "labels pod-security.kubernetes.io/enforce", `"privileged"`},
		{namespace + "labels pod-security.kubernetes.io/audit", `"privileged"`},
		{namespace + "labels pod-security.kubernetes.io/warn", `"privileged"`},

		{daemonSet + "metadata name", `"` + name + `"`},
		{daemonSet + "metadata namespace", `"imds-guard"`},
		{daemonSet + "spec selector matchLabels", label},
		{template + "metadata labels", label},

		{pod + "hostNetwork", `true`},
		{pod + "hostPID", `null`},
		{pod + "hostIPC", `null`},
		{pod + "priorityClassName", `"system-node-critical"`},
		{pod + "tolerations", `[{"operator":"Exists"}]`},
		{pod + "nodeSelector", `{"kubernetes.io/os":"linux"}`},
		{pod + "affinity nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms",
			`[{"matchExpressions":[{"key":"eks.amazonaws.com/compute-type","operator":"NotIn","values":["fargate"]}]}]`},
		{pod + "volumes xtables-lock hostPath", `{"path":"/run/xtables.lock","type":"FileOrCreate"}`},
		{pod + "volumes lib-modules hostPath", `{"path":"/lib/modules"}`},
		{pod + "volumes state hostPath", `{"path":"/run/imds-guard","type":"DirectoryOrCreate"}`},

		{c + "image", `"ghcr.io/imds-guard/imds-guard:v0.1.0"`},
		{c + "command", `null`}, // the image's entrypoint
		{c + "securityContext", `{"privileged":true,"readOnlyRootFilesystem":true}`},
		{c + "volumeMounts", `[{"mountPath":"/run/xtables.lock","name":"xtables-lock"},` +
			`{"mountPath":"/lib/modules","name":"lib-modules","readOnly":true},` +
			`{"mountPath":"/run/imds-guard","name":"state"}]`},
		{c + "resources", `{"limits":{"memory":"128Mi"},"requests":{"cpu":"10m","memory":"32Mi"}}`},
	}
}

func TestManifests(t *testing.T) {
	const (
		agent = pod + "containers imds-guard "
		undo  = pod + "initContainers cleanup "
		idle  = pod + "containers pause "
	)
	tests := []struct {
		file   string
		kinds  []string // no more: above all no Role and no ClusterRole
		checks []check
	}{
		{
			file:  "daemonset.yaml",
			kinds: []string{"Namespace", "ServiceAccount", "DaemonSet"},
			checks: append(editsNode("imds-guard", "containers imds-guard"), []check{
				{"ServiceAccount metadata name", `"imds-guard"`},
				{"ServiceAccount metadata namespace", `"imds-guard"`},
				{"ServiceAccount automountServiceAccountToken", `false`},
				{pod + "serviceAccountName", `"imds-guard"`},
				{pod + "automountServiceAccountToken", `null`}, // true would win over the ServiceAccount's
				{daemonSet + "spec updateStrategy", `{"rollingUpdate":{"maxUnavailable":1},"type":"RollingUpdate"}`},
				{agent + "args", `["run","--interface=eni+","--kubernetes=off","--log-format=json"]`},
				{agent + "ports", `[{"containerPort":9169,"name":"metrics","protocol":"TCP"}]`},
				{agent + "startupProbe httpGet", `{"path":"/healthz","port":"metrics"}`},
				{agent + "livenessProbe httpGet", `{"path":"/healthz","port":"metrics"}`},
				{agent + "readinessProbe httpGet", `{"path":"/readyz","port":"metrics"}`},
				{template + "metadata annotations prometheus.io/port", `"9169"`},
			}...),
		},
		{
			file:  "cleanup.yaml",
			kinds: []string{"Namespace", "DaemonSet"},
			checks: append(editsNode("imds-guard-cleanup", "initContainers cleanup"), []check{
				{pod + "automountServiceAccountToken", `false`},
				{undo + "args", `["cleanup"]`},
				{idle + "securityContext privileged", `null`},
				{idle + "securityContext runAsNonRoot", `true`},
				{idle + "volumeMounts", `null`},
			}...),
		},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			docs := read(t, tt.file)
			for _, kind := range tt.kinds {
				if docs[kind] == nil {
					t.Errorf("no %s", kind)
				}
			}
			if len(docs) != len(tt.kinds) {
				t.Errorf("%d documents, want %d: %v", len(docs), len(tt.kinds), tt.kinds)
			}
			for _, c := range tt.checks {
				got, err := json.Marshal(at(docs, c.path))
				if err != nil {
					t.Fatal(err)
				}
				if string(got) != c.want {
					t.Errorf("%s\n got %s\nwant %s", c.path, got, c.want)
				}
			}
		})
	}
}

// There is no shell in the image: in the shell form it would not start.
func TestDockerfileExecForm(t *testing.T) {
	data, err := os.ReadFile("../Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	for instruction, want := range map[string]string{
		"ENTRYPOINT": `["/usr/local/bin/imds-guard"]`,
		"CMD":        `["run"]`,
	} {
		got := regexp.MustCompile(`(?m)^`+instruction+` (.*)$`).FindAllStringSubmatch(string(data), -1)
		if len(got) != 1 || got[0][1] != want {
			t.Errorf("%s: got %q, want once %s", instruction, got, want)
		}
	}
}

// read returns the documents of a manifest by kind.
func read(t *testing.T, file string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]any{}
	for i, text := range regexp.MustCompile(`(?m)^---$`).Split(string(data), -1) {
		var doc map[string]any
		// Strict: a key given twice is a mistake that YAML would let pass.
		if err := yaml.UnmarshalStrict([]byte(text), &doc); err != nil {
			t.Fatalf("parsing document %d of %s: %v", i+1, file, err)
		}
		kind, _ := doc["kind"].(string)
		if docs[kind] != nil {
			t.Fatalf("%s has two documents of kind %q", file, kind)
		}
		docs[kind] = doc
	}
	return docs
}

// at follows a path of keys, separated by blanks because labels have dots and
// slashes in them. In a list the key is an element's name. What is
// not there is nil.
func at(v any, path string) any {
	for _, key := range strings.Fields(path) {
		switch x := v.(type) {
		case map[string]any:
			v = x[key]
		case []any:
			v = element(x, key)
		default:
			return nil
		}
	}
	return v
}

func element(list []any, key string) any {
	for _, e := range list {
		if m, ok := e.(map[string]any); ok && m["name"] == key {
			return m
		}
	}
	return nil
}

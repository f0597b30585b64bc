// Package deploy_test holds the manifests, the chart and the Dockerfile to what users and
// the rest of the project rely on.
package deploy_test

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// check says what is at a path of a manifest. See at for the path; want is
// JSON, and null is for what must not be there.
type check struct{ path, want string }

const (
	daemonSet = "DaemonSet/imds-guard "
	template  = daemonSet + "spec template "
	pod       = template + "spec "
	agent     = pod + "containers imds-guard "

	cleanupSet = "DaemonSet/imds-guard-cleanup "
	cleanupPod = cleanupSet + "spec template spec "
)

// The security contexts of the container that edits the node's iptables.
const (
	privileged = `{"privileged":true,"readOnlyRootFilesystem":true}`
	hardened   = `{"allowPrivilegeEscalation":false,"capabilities":{"add":["NET_ADMIN","NET_RAW","BPF"],"drop":["ALL"]},` +
		`"privileged":false,"readOnlyRootFilesystem":true,"seccompProfile":{"type":"RuntimeDefault"}}`
)

// addresses are the variables by which the agent knows whether it is in the
// node's network namespace.
const addresses = `{"name":"POD_IP","valueFrom":{"fieldRef":{"fieldPath":"status.podIP"}}},` +
	`{"name":"HOST_IP","valueFrom":{"fieldRef":{"fieldPath":"status.hostIP"}}}`

// bpffsMount is where the programs of the layer cgroup are pinned; below cgroupMount are the pods.
const (
	bpffsMount  = `,{"mountPath":"/host/sys/fs/bpf","name":"bpffs"}`
	cgroupMount = `,{"mountPath":"/host/sys/fs/cgroup","name":"cgroup","readOnly":true}`
)

// editsNode is what holds for both DaemonSets and their container that edits
// the node's iptables.
func editsNode(set, name, container, securityContext, moreMounts string) []check {
	const ns = "Namespace/imds-guard metadata labels pod-security.kubernetes.io/"
	p := set + "spec template spec "
	c := p + container + " "
	label := `{"app.kubernetes.io/name":"` + name + `"}`
	component := map[string]string{"imds-guard": "agent", "imds-guard-cleanup": "cleanup"}[name]
	modulesMount := `{"mountPath":"/lib/modules","name":"lib-modules","readOnly":true},`
	modules := `{"path":"/lib/modules"}`
	if securityContext == hardened {
		modulesMount, modules = "", "null" // nobody could load them
	}
	return []check{
		{ns + "enforce", `"privileged"`},
		{ns + "audit", `"privileged"`},
		{ns + "warn", `"privileged"`},

		{set + "metadata namespace", `"imds-guard"`},
		{set + "metadata annotations", `null`}, // no Helm hook
		{set + "spec selector matchLabels", label},
		{set + "spec template metadata labels", `{"app.kubernetes.io/component":"` + component + `","app.kubernetes.io/instance":"imds-guard",` +
			`"app.kubernetes.io/name":"` + name + `","app.kubernetes.io/part-of":"imds-guard"}`},

		{p + "hostNetwork", `true`},
		{p + "hostPID", `null`},
		{p + "hostIPC", `null`},
		{p + "priorityClassName", `"system-node-critical"`},
		{p + "tolerations", `[{"operator":"Exists"}]`},
		{p + "nodeSelector", `{"kubernetes.io/os":"linux"}`},
		{p + "affinity nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms",
			`[{"matchExpressions":[{"key":"eks.amazonaws.com/compute-type","operator":"NotIn","values":["fargate","hybrid"]}]}]`},
		{p + "volumes xtables-lock hostPath", `{"path":"/run/xtables.lock","type":"FileOrCreate"}`},
		{p + "volumes lib-modules hostPath", modules},
		{p + "volumes state hostPath", `{"path":"/run/imds-guard","type":"DirectoryOrCreate"}`},

		{c + "image", `"` + placeholder + `:v0.1.0"`},
		{c + "command", `null`}, // the image's entrypoint
		{c + "securityContext", securityContext},
		{c + "volumeMounts", `[{"mountPath":"/run/xtables.lock","name":"xtables-lock"},` + modulesMount +
			`{"mountPath":"/run/imds-guard","name":"state"}` + moreMounts + `]`},
		{c + "resources", `{"limits":{"memory":"128Mi"},"requests":{"cpu":"10m","memory":"32Mi"}}`},
	}
}

// agentChecks is what holds for the agent, hardened or not.
func agentChecks(securityContext string) []check {
	const byAgent = `"request.userInfo.username == 'system:serviceaccount:imds-guard:imds-guard'"`
	subject := `[{"kind":"ServiceAccount","name":"imds-guard","namespace":"imds-guard"}]`
	return append(editsNode(daemonSet, "imds-guard", "containers imds-guard", securityContext, bpffsMount+cgroupMount), []check{
		// A token for the agent's pod and for no other.
		{"ServiceAccount/imds-guard metadata namespace", `"imds-guard"`},
		{"ServiceAccount/imds-guard automountServiceAccountToken", `false`},
		{pod + "serviceAccountName", `"imds-guard"`},
		{pod + "volumes cgroup hostPath", `{"path":"/sys/fs/cgroup"}`},
		{pod + "automountServiceAccountToken", `true`},
		{agent + "env", `[{"name":"NODE_NAME","valueFrom":{"fieldRef":{"fieldPath":"spec.nodeName"}}},` + addresses + `]`},

		// Exactly what pkg/node and pkg/pods use.
		{"ClusterRole/imds-guard rules", "[" + nodeRules + podsRule + eventsRule + "]"},
		{"ClusterRoleBinding/imds-guard roleRef",
			`{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"imds-guard"}`},
		{"ClusterRoleBinding/imds-guard subjects", subject},
		{"Role/imds-guard metadata namespace", `"default"`},
		{"Role/imds-guard rules", `[{"apiGroups":[""],"resources":["events"],"verbs":["create","patch"]}]`},
		{"RoleBinding/imds-guard metadata namespace", `"default"`},
		{"RoleBinding/imds-guard roleRef", `{"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"imds-guard"}`},
		{"RoleBinding/imds-guard subjects", subject},

		{policy + "failurePolicy", `"Fail"`},
		{policy + "matchConstraints resourceRules", `[{"apiGroups":[""],"apiVersions":["v1"],` +
			`"operations":["CREATE","UPDATE","DELETE"],"resources":["nodes","nodes/status"]}]`},
		{policy + "matchConditions 0 expression", byAgent},
		{"ValidatingAdmissionPolicyBinding/imds-guard spec", `{"policyName":"imds-guard","validationActions":["Deny"]}`},
		{eventsPolicy + "failurePolicy", `"Fail"`},
		{eventsPolicy + "matchConstraints resourceRules", `[{"apiGroups":[""],"apiVersions":["v1"],` +
			`"operations":["CREATE","UPDATE","DELETE"],"resources":["events"]}]`},
		{eventsPolicy + "matchConditions 0 expression", byAgent},
		{"ValidatingAdmissionPolicyBinding/imds-guard-events spec",
			`{"policyName":"imds-guard-events","validationActions":["Deny"]}`},

		{daemonSet + "spec updateStrategy", `{"rollingUpdate":{"maxUnavailable":1},"type":"RollingUpdate"}`},
		{agent + "args", `["run","--interface=eni+","--probe-interval=5m","--health-bind-address=127.0.0.1:9168"]`},
		{agent + "ports", `[{"containerPort":9169,"name":"metrics","protocol":"TCP"},` +
			`{"containerPort":9168,"name":"health","protocol":"TCP"}]`},
		{agent + "startupProbe httpGet", `{"host":"127.0.0.1","path":"/healthz","port":"health"}`},
		{agent + "livenessProbe httpGet", `{"host":"127.0.0.1","path":"/healthz","port":"health"}`},
		{agent + "readinessProbe httpGet", `{"host":"127.0.0.1","path":"/readyz","port":"health"}`},
		{template + "metadata annotations prometheus.io/port", `"9169"`},
	}...)
}

// The rules of the ClusterRole: what is always needed, which pods there are, and events about them.
const (
	nodeRules = `{"apiGroups":[""],"resources":["nodes"],"verbs":["get","patch"]},` +
		`{"apiGroups":[""],"resources":["nodes/status"],"verbs":["patch"]}`
	podsRule   = `,{"apiGroups":[""],"resources":["pods"],"verbs":["list","watch"]}`
	eventsRule = `,{"apiGroups":[""],"resources":["events"],"verbs":["create","patch"]}`
)

const (
	policy       = "ValidatingAdmissionPolicy/imds-guard spec "
	eventsPolicy = "ValidatingAdmissionPolicy/imds-guard-events spec "
)

func TestManifests(t *testing.T) {
	agentKinds := []string{
		"Namespace/imds-guard", "ServiceAccount/imds-guard", "ClusterRole/imds-guard", "ClusterRoleBinding/imds-guard",
		"Role/imds-guard", "RoleBinding/imds-guard", "DaemonSet/imds-guard",
		"ValidatingAdmissionPolicy/imds-guard", "ValidatingAdmissionPolicyBinding/imds-guard",
		"ValidatingAdmissionPolicy/imds-guard-events", "ValidatingAdmissionPolicyBinding/imds-guard-events",
	}
	tests := []struct {
		file   string
		kinds  []string // no more: above all no other role
		checks []check
	}{
		{"daemonset.yaml", agentKinds, agentChecks(privileged)},
		{"daemonset-hardened.yaml", agentKinds, agentChecks(hardened)},
		{
			file:  "cleanup.yaml",
			kinds: []string{"Namespace/imds-guard", "DaemonSet/imds-guard-cleanup"},
			checks: append(editsNode(cleanupSet, "imds-guard-cleanup", "initContainers cleanup", privileged, bpffsMount), []check{
				{cleanupPod + "volumes bpffs hostPath", `{"path":"/sys/fs/bpf"}`},
				{cleanupPod + "automountServiceAccountToken", `false`},
				{cleanupPod + "initContainers cleanup args", `["cleanup"]`},
				{cleanupPod + "containers pause image", `"` + placeholder + `:v0.1.0"`},
				{cleanupPod + "containers pause args", `["pause"]`},
				{cleanupPod + "containers pause securityContext", `{"allowPrivilegeEscalation":false,"capabilities":{"drop":["ALL"]},` +
					`"readOnlyRootFilesystem":true,"runAsNonRoot":true,"runAsUser":65535,"seccompProfile":{"type":"RuntimeDefault"}}`},
				{cleanupPod + "containers pause volumeMounts", `null`},
			}...),
		},
		{
			file:  "monitoring.yaml",
			kinds: []string{"PodMonitor/imds-guard", "PrometheusRule/imds-guard", "ConfigMap/imds-guard-dashboard"},
			checks: []check{
				{"PodMonitor/imds-guard spec selector matchLabels", `{"app.kubernetes.io/name":"imds-guard"}`},
				{"PodMonitor/imds-guard spec podMetricsEndpoints 0 port", `"metrics"`},
				{"ConfigMap/imds-guard-dashboard metadata labels grafana_dashboard", `"1"`},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			data, err := os.ReadFile(tt.file)
			if err != nil {
				t.Fatal(err)
			}
			docs := parse(t, string(data))
			docs.kinds(t, tt.kinds...)
			docs.check(t, tt.checks)
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

// documents are those of a manifest, by kind and name joined by a slash.
type documents map[string]any

func parse(t *testing.T, manifest string) documents {
	t.Helper()
	docs := documents{}
	for i, text := range regexp.MustCompile(`(?m)^---$`).Split(strings.TrimPrefix(manifest, "---\n"), -1) {
		var doc map[string]any
		// Strict: a key given twice is a mistake that YAML would let pass.
		if err := yaml.UnmarshalStrict([]byte(text), &doc); err != nil {
			t.Fatalf("parsing document %d: %v\n%s", i+1, err, text)
		}
		kind, _ := doc["kind"].(string)
		name, _ := at(doc, "metadata name").(string)
		if key := kind + "/" + name; docs[key] != nil {
			t.Fatalf("two documents are %s", key)
		}
		docs[kind+"/"+name] = doc
	}
	return docs
}

// kinds says that there are these documents and no other.
func (d documents) kinds(t *testing.T, want ...string) {
	t.Helper()
	got := slices.Sorted(maps.Keys(d))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("documents\n got %v\nwant %v", got, want)
	}
}

func (d documents) check(t *testing.T, checks []check) {
	t.Helper()
	for _, c := range checks {
		got, err := json.Marshal(at(map[string]any(d), c.path))
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != c.want {
			t.Errorf("%s\n got %s\nwant %s", c.path, got, c.want)
		}
	}
}

// at follows a path of keys, separated by blanks because labels have dots and
// slashes in them. In a list the key is an element's name, or its number. What is
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
	if i, err := strconv.Atoi(key); err == nil && i < len(list) {
		return list[i]
	}
	for _, e := range list {
		if m, ok := e.(map[string]any); ok && m["name"] == key {
			return m
		}
	}
	return nil
}

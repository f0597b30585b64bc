// What a platform team expects of every chart: names, labels, registries, single alerts, `helm test`; and that an installed release
// can be upgraded.
package deploy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// everything turns on all that makes an object.
var everything = []string{
	"podMonitor.enabled=true", "prometheusRule.enabled=true", "dashboard.enabled=true", "policies.services=true", "policies.probes=true",
	"cleanup.onUninstall=true",
}

// The selector of a DaemonSet can't be changed, and what it selects has to have its labels. These are the first version's.
func TestSelectorsNeverChange(t *testing.T) {
	manifest, stderr, err := render(t, everything...)
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	for _, name := range []string{"imds-guard", "imds-guard-cleanup"} {
		selector := "  selector:\n    matchLabels:\n      app.kubernetes.io/name: " + name + "\n  "
		if strings.Count(manifest, selector) < 1 {
			t.Errorf("no object selects as ever:\n%s", selector)
		}
	}
	if all, known := strings.Count(manifest, "matchLabels:\n"), strings.Count(manifest, "matchLabels:\n      app.kubernetes.io/name: imds-guard"); all != known {
		t.Errorf("%d selectors, and %d are known", all, known)
	}
}

// A release from before these values, upgraded with --reuse-values, has the old chart's defaults alone.
func TestUpgradeWithOldValues(t *testing.T) {
	old := t.TempDir()
	if err := os.CopyFS(old, os.DirFS(chart)); err != nil {
		t.Fatal(err)
	}
	values, err := os.ReadFile("testdata/values-before.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(old, "values.yaml"), values, 0o600); err != nil {
		t.Fatal(err)
	}
	set := []string{"--set=" + strings.Join(everything, ",")}
	manifest, stderr, err := helmTemplate(t, append(set, old)...)
	if err != nil {
		t.Fatalf("with the old values: %v: %s", err, stderr)
	}
	fresh, stderr, err := helmTemplate(t, append(set, "--set=image.repository=registry.example.com/imds-guard", chart)...)
	if err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	// The old affinity knows no hybrid nodes; the base of the runbooks was not a value.
	for _, differs := range []string{`( +- hybrid\n)`, `( +runbook_url: .*\n)`} {
		manifest, fresh = regexp.MustCompile(differs).ReplaceAllString(manifest, ""), regexp.MustCompile(differs).ReplaceAllString(fresh, "")
	}
	if manifest != fresh {
		t.Errorf("with the old values it is\n%s\nand with the new ones\n%s", manifest, fresh)
	}
}

func TestNames(t *testing.T) {
	names := func(prefix string) (names []string) {
		for _, name := range []string{
			"ClusterRole/", "ClusterRoleBinding/", "Role/", "RoleBinding/", "ServiceAccount/", "DaemonSet/", "PodMonitor/", "PrometheusRule/",
			"ValidatingAdmissionPolicy/", "ValidatingAdmissionPolicyBinding/",
		} {
			names = append(names, name+prefix)
		}
		for _, policy := range []string{"-events", "-services", "-probes"} {
			names = append(names, "ValidatingAdmissionPolicy/"+prefix+policy, "ValidatingAdmissionPolicyBinding/"+prefix+policy)
		}
		return append(names, "DaemonSet/"+prefix+"-cleanup", "ConfigMap/"+prefix+"-dashboard")
	}
	for _, tt := range []struct{ values, name, label string }{
		{"nameOverride=guard", "guard", "guard"},
		{"fullnameOverride=guard", "guard", "imds-guard"},
		{"nameOverride=a,fullnameOverride=b", "b", "a"},
	} {
		docs := mustRender(t, append([]string{tt.values}, everything...)...)
		docs.kinds(t, names(tt.name)...)
		set := "DaemonSet/" + tt.name + " spec "
		docs.check(t, []check{
			{set + "selector matchLabels", `{"app.kubernetes.io/name":"` + tt.label + `"}`},
			{set + "template metadata labels app.kubernetes.io/name", `"` + tt.label + `"`},
			{set + "template spec serviceAccountName", `"` + tt.name + `"`},
			{"DaemonSet/" + tt.name + "-cleanup spec selector matchLabels", `{"app.kubernetes.io/name":"` + tt.label + `-cleanup"}`},
			{"PodMonitor/" + tt.name + " spec selector matchLabels", `{"app.kubernetes.io/name":"` + tt.label + `"}`},
			{"ClusterRoleBinding/" + tt.name + " roleRef name", `"` + tt.name + `"`},
			{"RoleBinding/" + tt.name + " roleRef name", `"` + tt.name + `"`},
			{"ValidatingAdmissionPolicyBinding/" + tt.name + "-events spec policyName", `"` + tt.name + `-events"`},
			{"ValidatingAdmissionPolicy/" + tt.name + " spec matchConditions 0 expression",
				`"request.userInfo.username == 'system:serviceaccount:imds-guard:` + tt.name + `'"`},
		})
		// Alerts and panels that look for the DaemonSet, or for Prometheus' job, look for these.
		for _, object := range []string{"PrometheusRule/" + tt.name + " spec", "ConfigMap/" + tt.name + "-dashboard data"} {
			selectors := regexp.MustCompile(`\b(daemonset|job)=~?\\?"[^"]*"`).FindAllString(fmt.Sprint(at(map[string]any(docs), object)), -1)
			if len(selectors) == 0 {
				t.Errorf("%s selects no DaemonSet and no job", object)
			}
			for _, s := range selectors {
				if strings.Contains(s, "imds-guard") || !strings.Contains(s, tt.name) {
					t.Errorf("%s: %s selects %s", tt.values, object, s)
				}
			}
		}
	}
}

func TestLabels(t *testing.T) {
	docs := mustRender(t, append([]string{"commonLabels.team=a", "podLabels.pod=b", "podAnnotations.note=c"}, everything...)...)
	for key, doc := range docs {
		labels, _ := at(doc, "metadata labels").(map[string]any)
		for _, name := range []string{"team", "helm.sh/chart", "app.kubernetes.io/name", "app.kubernetes.io/instance",
			"app.kubernetes.io/version", "app.kubernetes.io/component", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by"} {
			if value, _ := labels[name].(string); value == "" {
				t.Errorf("%s has no label %s: %v", key, name, labels)
			}
		}
	}
	for _, set := range []string{daemonSet, cleanupSet} {
		// Not the chart's version: a new one alone would replace every pod.
		docs.check(t, []check{
			{set + "spec template metadata labels team", `"a"`},
			{set + "spec template metadata labels pod", `"b"`},
			{set + "spec template metadata labels helm.sh/chart", `null`},
			{set + "spec template metadata annotations note", `"c"`},
		})
	}
	// One's own word wins, but for the selectors.
	mustRender(t, `commonLabels.app\.kubernetes\.io/part-of=platform`).check(t, []check{
		{daemonSet + "metadata labels app.kubernetes.io/part-of", `"platform"`},
		{template + "metadata labels app.kubernetes.io/part-of", `"platform"`},
	})
}

func TestImageRegistry(t *testing.T) {
	for repository, want := range map[string]string{
		"registry.example.com/a/b":      "mirror.example.com/x/a/b",
		"registry.example.com:5000/a/b": "mirror.example.com/x/a/b",
		"localhost/a":                   "mirror.example.com/x/a",
		"registry:5000/a":               "mirror.example.com/x/a",
		"team/a":                        "mirror.example.com/x/team/a",
		"a":                             "mirror.example.com/x/a",
	} {
		mustRender(t, "cleanup.onUninstall=true", "global.imageRegistry=mirror.example.com/x", "image.repository="+repository).check(t, []check{
			{agent + "image", `"` + want + `:v0.1.0"`},
			{cleanupPod + "initContainers cleanup image", `"` + want + `:v0.1.0"`},
			{cleanupPod + "containers pause image", `"` + want + `:v0.1.0"`},
		})
	}
	mustRender(t, "imagePullSecrets[0].name=a", "image.pullSecrets[0].name=b").check(t, []check{{pod + "imagePullSecrets", `[{"name":"a"},{"name":"b"}]`}})
}

func TestExtras(t *testing.T) {
	mustRender(t, "extraArgs={--config=/etc/x.yaml}", "extraEnv[0].name=A", "extraEnv[0].value=b", "extraVolumes[0].name=x",
		"extraVolumes[0].configMap.name=x", "extraVolumeMounts[0].name=x", "extraVolumeMounts[0].mountPath=/etc/x",
		"extraObjects[0].apiVersion=v1", "extraObjects[0].kind=Secret", `extraObjects[0].metadata.name=a-{{ .Release.Namespace }}`,
		`extraObjects[1]=apiVersion: v1
kind: Secret
metadata: {name: b-{{ .Release.Name }}}`).check(t, []check{
		{agent + "env A value", `"b"`},
		{agent + "volumeMounts x mountPath", `"/etc/x"`},
		{pod + "volumes x configMap name", `"x"`},
		{"Secret/a-imds-guard kind", `"Secret"`},
		{"Secret/b-imds-guard kind", `"Secret"`},
	})
}

// Whoever makes accounts and rights himself gets none, and the rest goes by what he made.
func TestWithoutAccountAndRights(t *testing.T) {
	docs := mustRender(t, "serviceAccount.create=false", "serviceAccount.name=theirs", "rbac.create=false")
	docs.kinds(t, "DaemonSet/imds-guard", "ValidatingAdmissionPolicy/imds-guard", "ValidatingAdmissionPolicyBinding/imds-guard",
		"ValidatingAdmissionPolicy/imds-guard-events", "ValidatingAdmissionPolicyBinding/imds-guard-events")
	docs.check(t, []check{
		{pod + "serviceAccountName", `"theirs"`},
		{policy + "matchConditions 0 expression", `"request.userInfo.username == 'system:serviceaccount:imds-guard:theirs'"`},
	})
}

func TestPodMonitorElsewhere(t *testing.T) {
	const endpoint = "PodMonitor/imds-guard spec podMetricsEndpoints 0 "
	docs := mustRender(t, "podMonitor.enabled=true", "podMonitor.namespace=monitoring", "podMonitor.scrapeTimeout=5s",
		"podMonitor.relabelings[0].targetLabel=a", "podMonitor.metricRelabelings[0].action=drop", "prometheusRule.enabled=true", "prometheusRule.namespace=rules")
	docs.check(t, []check{
		{"PodMonitor/imds-guard metadata namespace", `"monitoring"`},
		{"PodMonitor/imds-guard spec namespaceSelector", `{"matchNames":["imds-guard"]}`},
		{"PrometheusRule/imds-guard metadata namespace", `"rules"`},
		{endpoint + "scrapeTimeout", `"5s"`},
		{endpoint + "relabelings 0 targetLabel", `"node"`},
		{endpoint + "relabelings 1 targetLabel", `"a"`},
		{endpoint + "metricRelabelings 3 action", `"drop"`},
	})
	mustRender(t, "podMonitor.enabled=true").check(t, []check{
		{"PodMonitor/imds-guard metadata namespace", `"imds-guard"`},
		{"PodMonitor/imds-guard spec namespaceSelector", `null`},
	})
}

const defaultRunbooks = "https://github.com/imds-guard/imds-guard/blob/main/docs/runbooks/"

// alertRules are the rules of a PrometheusRule's spec that are alerts.
func alertRules(spec any) (rules []map[string]any) {
	groups, _ := at(spec, "groups").([]any)
	for _, g := range groups {
		list, _ := at(g, "rules").([]any)
		for _, r := range list {
			if rule, _ := r.(map[string]any); rule["alert"] != nil {
				rules = append(rules, rule)
			}
		}
	}
	return rules
}

// Each alert of the file, whatever it is called, can be changed and turned off, and no other is touched by that.
func TestEachAlertCanBeChanged(t *testing.T) {
	rendered := func(values ...string) []map[string]any {
		docs := mustRender(t, append(values, "prometheusRule.enabled=true")...)
		return alertRules(at(map[string]any(docs), "PrometheusRule/imds-guard spec"))
	}
	all := rendered()
	if len(all) < 2 {
		t.Fatalf("there are %d alerts", len(all))
	}
	// Each gets a time of its own, and each is turned off once with its neighbour still on.
	var changes, offs [2][]string
	want, left := slices.Clone(all), [2][]map[string]any{}
	for i, rule := range all {
		name := rule["alert"].(string)
		if got := at(rule, "annotations runbook_url"); got != defaultRunbooks+name+".md" {
			t.Errorf("%s: the runbook is at %v", name, got)
		}
		value, minutes := "prometheusRule.alerts."+name, fmt.Sprintf("%dm", 100+i)
		changes[0] = append(changes[0], value+".for="+minutes)
		changes[1] = append(changes[1], fmt.Sprintf("%s.severity=page%d", value, i))
		want[i] = deepCopy(t, rule)
		want[i]["for"], want[i]["labels"].(map[string]any)["severity"] = minutes, fmt.Sprintf("page%d", i)
		offs[i%2] = append(offs[i%2], value+".enabled=false")
		left[1-i%2] = append(left[1-i%2], rule)
	}
	sameRules(t, rendered(slices.Concat(changes[0], changes[1])...), want)
	for i := range offs {
		sameRules(t, rendered(offs[i]...), left[i])
	}
	sameRules(t, rendered(slices.Concat(offs[0], offs[1])...), nil)
	for _, base := range []string{"https://wiki.example.com/a", "https://wiki.example.com/a/"} {
		for _, rule := range rendered("prometheusRule.runbookURL=" + base) {
			if got, want := at(rule, "annotations runbook_url"), "https://wiki.example.com/a/"+rule["alert"].(string)+".md"; got != want {
				t.Errorf("the runbook is at %v, not at %s", got, want)
			}
		}
	}
}

func deepCopy(t *testing.T, rule map[string]any) (copied map[string]any) {
	t.Helper()
	text, err := json.Marshal(rule)
	if err == nil {
		err = json.Unmarshal(text, &copied)
	}
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

func sameRules(t *testing.T, got, want []map[string]any) {
	t.Helper()
	a, errA := json.Marshal(got)
	b, errB := json.Marshal(want)
	if errA != nil || errB != nil || !bytes.Equal(a, b) {
		t.Errorf("the alerts are\n%s\nwant\n%s", a, b)
	}
}

// helm test: a control in the node's network, and then an ordinary pod, neither of which anything takes for an agent.
func TestHelmTestPods(t *testing.T) {
	pods := func(values ...string) documents {
		t.Helper()
		manifest, stderr, err := helmTemplate(t, chart, "--set=image.repository="+placeholder, "--set="+strings.Join(values, ","))
		if err != nil {
			t.Fatalf("%v: %s", err, stderr)
		}
		docs := parse(t, manifest)
		maps.DeleteFunc(docs, func(key string, _ any) bool { return !strings.HasPrefix(key, "Pod/") })
		return docs
	}
	const control, test = "Pod/imds-guard-test-control ", "Pod/imds-guard-test "
	docs := pods("podAnnotations.note=a", "podLabels.team=b", "imagePullSecrets[0].name=c", "test.tolerations[0].operator=Exists", "test.node=d", "hardened=true")
	docs.kinds(t, "Pod/imds-guard-test-control", "Pod/imds-guard-test")
	for p, more := range map[string][3]string{control: {`true`, `"0"`, `"--want=answer"`}, test: {`null`, `"1"`, `"--want=none"`}} {
		docs.check(t, []check{
			{p + "spec hostNetwork", more[0]},
			{p + "metadata annotations helm.sh/hook-weight", more[1]},
			{p + "spec containers ask args", `["ask",` + more[2] + `]`},
			{p + "metadata annotations helm.sh/hook", `"test"`},
			{p + "metadata annotations note", `"a"`},
			{p + "metadata labels app.kubernetes.io/name", `"imds-guard-test"`},
			{p + "metadata labels team", `"b"`},
			{p + "spec containers ask image", `"` + placeholder + `:v0.1.0"`},
			{p + "spec containers ask securityContext capabilities", `{"drop":["ALL"]}`},
			{p + "spec containers ask securityContext runAsNonRoot", `true`},
			{p + "spec automountServiceAccountToken", `false`},
			{p + "spec restartPolicy", `"Never"`},
			{p + "spec imagePullSecrets", `[{"name":"c"}]`},
			{p + "spec tolerations", `[{"operator":"Exists"}]`},
			{p + "spec nodeSelector", `{"kubernetes.io/hostname":"d","kubernetes.io/os":"linux"}`},
			{p + "spec containers ask env NODE_NAME valueFrom fieldRef fieldPath", `"spec.nodeName"`},
			{p + "spec affinity nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms 0 matchExpressions 0 values", `["fargate","hybrid"]`},
		})
	}
	// A control that is blocked would be none.
	for values, want := range map[string]string{
		"agent.hostNetworkPods=block": "none", // the release's own namespace is let through
		"agent.hostNetworkPods=block,agent.hostNetworkNamespaces={kube-system,imds-guard}": "none",
		"agent.hostNetworkPods=audit,agent.hostNetworkNamespaces={a}":                      "none",
		"agent.hostNetworkPods=block,agent.hostNetworkNamespaces={kube-system,a}":          "refusal",
		// Without the API, nobody's namespace is known.
		"agent.hostNetworkPods=block,agent.kubernetes=off": "refusal",
		// Where pods are answered, the test is there to fail: without one, helm test would pass.
		"agent.mode=audit": "none",
		"cleanup.run=true": "none",
		"agent.mode=audit,agent.hostNetworkPods=block,agent.hostNetworkNamespaces={a}": "none",
	} {
		docs := pods(values)
		docs.check(t, []check{{test + "spec containers ask args", `["ask","--want=` + want + `"]`}})
		if _, there := docs["Pod/imds-guard-test-control"]; there != (want == "none") {
			t.Errorf("%s: a control is there: %t", values, there)
		}
	}
	// The node is the test's alone.
	mustRender(t, "test.node=d").check(t, []check{{pod + "nodeSelector", `{"kubernetes.io/os":"linux"}`}})
}

// Whoever applies a plain manifest as it is gets no image from anybody, and is told what to put there. `make release` puts it there.
func TestPlainManifestsImage(t *testing.T) {
	for _, tt := range []struct{ image, want string }{
		{"registry.example.com:5000/a/imds-guard:v1.2.3", ""},
		{"registry.example.com/imds-guard:1.0@sha256:" + strings.Repeat("0", 64), ""},
		{"", placeholder + ":v0.1.0"},
	} {
		args := []string{helm(t), t.TempDir()}
		want := placeholder + ":v0.1.0"
		if tt.image != "" {
			args, want = append(args, tt.image), tt.image
		}
		if out, err := exec.Command("./render", args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, name := range []string{"daemonset.yaml", "daemonset-hardened.yaml", "cleanup.yaml"} {
			text, err := os.ReadFile(filepath.Join(args[1], name))
			if err != nil {
				t.Fatal(err)
			}
			images := regexp.MustCompile(`(?m)((?:^ *#.*\n)*)^ *image: (.*)$`).FindAllStringSubmatch(string(text), -1)
			if len(images) == 0 {
				t.Errorf("%s has no image", name)
			}
			for _, m := range images {
				if told := strings.Contains(m[1], "# PUT YOUR IMAGE HERE"); m[2] != want || told != (tt.image == "") {
					t.Errorf("%s: rendered for %q, the image is %q; told what to put there: %t", name, tt.image, m[2], told)
				}
			}
			if strings.Contains(string(text), "Helm") || strings.Contains(string(text), "helm.sh") {
				t.Errorf("%s says that Helm manages it", name)
			}
		}
	}
	out, err := exec.Command("./render", helm(t), t.TempDir(), "registry.example.com:5000/imds-guard").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "has no tag: write REPOSITORY:TAG") {
		t.Errorf("an image without a tag: %v: %s", err, out)
	}
}

// The chart: what it renders is what the plain manifests say, its values are the program's flags, and a wrong value is
// refused by its name.
package deploy_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/pflag"
	"sigs.k8s.io/yaml"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/node"
)

const chart = "chart/imds-guard"

// buildHelm makes bin/helm, if it is not there, and returns its path.
var buildHelm = sync.OnceValues(func() (string, error) {
	if out, err := exec.Command("make", "--silent", "--directory=..", "bin/helm").CombinedOutput(); err != nil {
		return "", errors.New(err.Error() + ": " + string(out))
	}
	return filepath.Abs("../bin/helm")
})

func helm(t *testing.T) string {
	t.Helper()
	path, err := buildHelm()
	if err != nil {
		t.Fatalf("building helm: %v", err)
	}
	return path
}

// placeholder is the image that nobody can pull.
const placeholder = "your-registry.invalid/imds-guard"

// render returns what the chart makes of values given as to `helm --set`, but for the pods of `helm test`.
func render(t *testing.T, values ...string) (manifest, stderr string, err error) {
	t.Helper()
	args := []string{chart, "--skip-tests", "--set=image.repository=" + placeholder}
	for _, v := range values {
		args = append(args, "--set="+v)
	}
	return helmTemplate(t, args...)
}

func helmTemplate(t *testing.T, args ...string) (manifest, stderr string, err error) {
	t.Helper()
	args = append([]string{"template", "imds-guard", "--namespace=imds-guard"}, args...)
	var out, errs bytes.Buffer
	cmd := exec.Command(helm(t), args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	return out.String(), errs.String(), err
}

func mustRender(t *testing.T, values ...string) documents {
	t.Helper()
	manifest, stderr, err := render(t, values...)
	if err != nil {
		t.Fatalf("rendering with %v: %v: %s", values, err, stderr)
	}
	return parse(t, manifest)
}

func TestPlainManifestsAreRendered(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("./render", helm(t), dir).CombinedOutput(); err != nil {
		t.Fatalf("rendering: %v: %s", err, out)
	}
	rendered, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(rendered) != len(plain) {
		t.Errorf("rendered %v, and there are %v", rendered, plain)
	}
	for _, file := range rendered {
		want, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(file.Name()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not what the chart renders: run `make manifests` (%v)", file.Name(), err)
		}
	}
}

func TestChartLint(t *testing.T) {
	if out, err := exec.Command(helm(t), "lint", "--strict", "--set=image.repository="+placeholder, chart).CombinedOutput(); err != nil {
		t.Errorf("helm lint: %v\n%s", err, out)
	}
}

// valueOf is where a flag's value is in the chart: under agent, by the flag's name in camel case, unless said otherwise.
var valueOf = map[string]string{
	"web-config-file": "webConfig.secretName",
	// Decided by the manifest alone.
	"node-name":  "",
	"kubeconfig": "",
	"config":     "", // the same settings once more
}

// chartOwn are defaults of values that are not the flag's own default, because the chart knows where the agent runs.
var chartOwn = map[string]string{"log-format": "json", "probe-interval": "5m", "health-bind-address": "127.0.0.1:9168"}

// A flag that equals its default is left out of the manifest: so the chart's default has to be the program's.
func TestEveryFlagHasAValue(t *testing.T) {
	data, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values struct{ Agent map[string]any }
	if err := yaml.Unmarshal(data, &values); err != nil {
		t.Fatal(err)
	}
	var known []string
	runFlags().VisitAll(func(f *pflag.Flag) {
		if _, special := valueOf[f.Name]; special {
			return
		}
		name := camelCase(f.Name)
		known = append(known, name)
		value, there := values.Agent[name]
		if !there {
			t.Errorf("--%s has no value agent.%s", f.Name, name)
			return
		}
		want, own := chartOwn[f.Name]
		if !own {
			want = strings.Trim(f.DefValue, "[]")
		}
		if got := text(value); got != want {
			t.Errorf("agent.%s is %q by default, and --%s %q", name, got, f.Name, want)
		}
	})
	for name := range values.Agent {
		if !slices.Contains(known, name) {
			t.Errorf("agent.%s is no flag", name)
		}
	}
}

func runFlags() *pflag.FlagSet {
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	config.NewOptions().AddTo(flags)
	return flags
}

func camelCase(flag string) string {
	words := strings.Split(flag, "-")
	for i, w := range words[1:] {
		words[i+1] = strings.ToUpper(w[:1]) + w[1:]
	}
	return strings.Join(words, "")
}

// text is a value as it would be given to a flag.
func text(value any) string {
	list, isList := value.([]any)
	if !isList {
		list = []any{value}
	}
	var words []string
	for _, v := range list {
		s, _ := v.(string)
		words = append(words, s)
	}
	return strings.Join(words, ",")
}

// What the values become, and that the program takes it.
func TestValues(t *testing.T) {
	probes := func(port, host string) (checks []check) {
		paths := map[string]string{"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}
		for probe, path := range paths {
			want := `{"path":"` + path + `","port":"` + port + `"}`
			if host != "" {
				want = `{"host":"` + host + `",` + want[1:]
			}
			checks = append(checks, check{agent + probe + " httpGet", want})
		}
		return checks
	}
	args := func(more string) check { return check{agent + "args", `["run","--interface=eni+"` + more + `]`} }
	annotations := template + "metadata annotations"
	hostIP := agent + "env HOST_IP valueFrom fieldRef fieldPath"

	tests := []struct {
		name   string
		values []string
		checks []check
	}{
		{
			"every flag", []string{
				"agent.interface={eni+,vlan+}", "agent.backend=nft", "agent.hostNetworkPods=audit", "agent.hostNetworkNamespaces={a,b}", "agent.verdict=reject", "agent.resyncPeriod=1m30s",
				"agent.mode=audit",
				"agent.probeInterval=10m",
				"agent.kubernetes=on", "agent.metricsBindAddress=:9999", "agent.healthBindAddress=127.0.0.1:9998",
				"webConfig.secretName=web", "agent.logLevel=debug", "agent.logFormat=text",
			},
			[]check{{agent + "args", `["run","--interface=eni+,vlan+","--host-network-pods=audit","--host-network-namespaces=a,b","--mode=audit","--backend=nft","--verdict=reject","--resync-period=1m30s","--probe-interval=10m",` +
				`"--kubernetes=on","--metrics-bind-address=:9999","--health-bind-address=127.0.0.1:9998",` +
				`"--web-config-file=/etc/imds-guard/web/web-config.yml","--log-level=debug","--log-format=text"]`}},
		},
		{
			"the layer of sockets", []string{"agent.layers={route,cgroup}", "agent.podsCgroup=/host/sys/fs/cgroup/pods", "hardened=true"},
			[]check{
				args(`,"--layers=route,cgroup","--pods-cgroup=/host/sys/fs/cgroup/pods"`),
				{agent + "securityContext capabilities add", `["NET_ADMIN","NET_RAW","BPF"]`},
				{agent + "volumeMounts bpffs", `{"mountPath":"/host/sys/fs/bpf","name":"bpffs"}`},
				{agent + "volumeMounts cgroup", `{"mountPath":"/host/sys/fs/cgroup","name":"cgroup","readOnly":true}`},
				{pod + "volumes bpffs hostPath", `{"path":"/sys/fs/bpf"}`},
				{pod + "volumes cgroup hostPath", `{"path":"/sys/fs/cgroup"}`},
			},
		},
		{
			"without it", []string{"agent.layers={iptables,route}", "hardened=true"},
			[]check{
				args(`,"--layers=iptables,route"`),
				{agent + "securityContext capabilities add", `["NET_ADMIN","NET_RAW"]`},
				{agent + "volumeMounts bpffs", `null`},
				{pod + "volumes cgroup", `null`},
			},
		},
		{"pods in the node's network", []string{"agent.hostNetworkPods=block"}, []check{args(`,"--host-network-pods=block"`)}},
		{"audit mode", []string{"agent.mode=audit"}, []check{args(`,"--mode=audit"`)}},
		{"nobody is named", []string{"agent.attribution=off"}, []check{args(`,"--attribution=off"`)}},
		{"nobody is named, unquoted", []string{"agent.attribution=false"}, []check{args(`,"--attribution=off"`)}},
		{"unquoted on", []string{"agent.kubernetes=true", "agent.attribution=true"}, []check{args(`,"--kubernetes=on"`)}},
		// As with values that were kept from a version before them, by helm upgrade --reuse-values.
		{"unset", []string{"agent.mode=null", "agent.attribution=null"}, []check{args("")}},
		{
			"metrics on the node alone", []string{"agent.metricsBindAddress=127.0.0.1:9200"},
			append(probes("metrics", "127.0.0.1"), args(`,"--metrics-bind-address=127.0.0.1:9200"`),
				check{agent + "ports metrics containerPort", `9200`}, check{annotations, `null`}),
		},
		{
			"metrics on the node alone, IPv6", []string{"agent.metricsBindAddress=[::1]:9169"},
			append(probes("metrics", "::1"), args(`,"--metrics-bind-address=[::1]:9169"`), check{annotations, `null`}),
		},
		{
			"metrics on the node's address", []string{"agent.metricsBindAddress=$(HOST_IP):9169"},
			append(probes("metrics", ""), args(`,"--metrics-bind-address=$(HOST_IP):9169"`), check{hostIP, `"status.hostIP"`}),
		},
		{
			"metrics on the node's IPv6 address", []string{"agent.metricsBindAddress=[$(HOST_IP)]:9169"},
			append(probes("metrics", ""), args(`,"--metrics-bind-address=[$(HOST_IP)]:9169"`), check{hostIP, `"status.hostIP"`}),
		},
		{
			"no metrics", []string{"agent.metricsBindAddress=off", "agent.healthBindAddress=127.0.0.1:9168"},
			append(probes("health", "127.0.0.1"), args(`,"--metrics-bind-address=off","--health-bind-address=127.0.0.1:9168"`),
				check{agent + "ports", `[{"containerPort":9168,"name":"health","protocol":"TCP"}]`}, check{annotations, `null`}),
		},
		{
			"web configuration", []string{"webConfig.secretName=web", "webConfig.file=w.yml", "podMonitor.enabled=true"},
			append(probes("health", "127.0.0.1"),
				args(`,"--health-bind-address=127.0.0.1:9168","--web-config-file=/etc/imds-guard/web/w.yml"`),
				check{agent + "volumeMounts web-config", `{"mountPath":"/etc/imds-guard/web","name":"web-config","readOnly":true}`},
				check{pod + "volumes web-config secret", `{"secretName":"web"}`},
				check{annotations + " prometheus.io/scheme", `"https"`},
				check{"PodMonitor/imds-guard spec podMetricsEndpoints 0 scheme", `"https"`}),
		},
		{
			"web configuration without TLS", []string{"webConfig.secretName=web", "webConfig.tls=false", "podMonitor.enabled=true"},
			[]check{
				{annotations + " prometheus.io/scheme", `null`},
				{"PodMonitor/imds-guard spec podMetricsEndpoints 0 scheme", `"http"`},
			},
		},
		{
			"image", []string{
				"image.repository=r.example.com:5000/a/b", "image.tag=v9", "image.pullPolicy=Always", "image.pullSecrets[0].name=s",
				"image.digest=sha256:" + strings.Repeat("0", 64),
			},
			[]check{
				{agent + "image", `"r.example.com:5000/a/b:v9@sha256:` + strings.Repeat("0", 64) + `"`},
				{agent + "imagePullPolicy", `"Always"`},
				{pod + "imagePullSecrets", `[{"name":"s"}]`},
			},
		},
		{
			"placement", []string{
				"updateStrategy.rollingUpdate.maxUnavailable=5%", "priorityClassName=other", "resources.limits.memory=1Gi",
				"tolerations[0].key=a", "tolerations[0].operator=Exists", "nodeSelector.pool=a", "affinity.nodeAffinity=null",
				"podLabels.team=a", "podAnnotations.note=b", "prometheusAnnotations=false", "serviceAccount.name=other",
				"serviceAccount.annotations.note=c",
			},
			[]check{
				{daemonSet + "spec updateStrategy rollingUpdate maxUnavailable", `"5%"`},
				{pod + "priorityClassName", `"other"`},
				{agent + "resources limits memory", `"1Gi"`},
				{pod + "tolerations", `[{"key":"a","operator":"Exists"}]`},
				{pod + "nodeSelector", `{"kubernetes.io/os":"linux","pool":"a"}`},
				{template + "metadata labels team", `"a"`},
				{annotations, `{"note":"b"}`},
				{pod + "serviceAccountName", `"other"`},
				{"ServiceAccount/other metadata annotations", `{"note":"c"}`},
				{"ClusterRoleBinding/imds-guard subjects 0 name", `"other"`},
				{"RoleBinding/imds-guard subjects 0 name", `"other"`},
				{"ValidatingAdmissionPolicy/imds-guard spec matchConditions 0 expression",
					`"request.userInfo.username == 'system:serviceaccount:imds-guard:other'"`},
			},
		},
		{
			"update by hand", []string{"updateStrategy.type=OnDelete", "updateStrategy.rollingUpdate=null"},
			[]check{{daemonSet + "spec updateStrategy", `{"type":"OnDelete"}`}},
		},
		{
			"monitoring", []string{
				"podMonitor.enabled=true", "podMonitor.interval=10s", "podMonitor.labels.a=b", "podMonitor.basicAuth.username.name=s",
				"podMonitor.tlsConfig.serverName=n", "prometheusRule.enabled=true", "prometheusRule.labels.c=d",
				"dashboard.enabled=true", "dashboard.labels.e=f", "dashboard.annotations.g=h",
			},
			[]check{
				{"PodMonitor/imds-guard metadata labels a", `"b"`},
				{"PodMonitor/imds-guard spec podMetricsEndpoints 0 interval", `"10s"`},
				{"PodMonitor/imds-guard spec podMetricsEndpoints 0 basicAuth username name", `"s"`},
				{"PodMonitor/imds-guard spec podMetricsEndpoints 0 tlsConfig serverName", `"n"`},
				{"PrometheusRule/imds-guard metadata labels c", `"d"`},
				{"ConfigMap/imds-guard-dashboard metadata labels e", `"f"`},
				{"ConfigMap/imds-guard-dashboard metadata labels grafana_dashboard", `"1"`},
				{"ConfigMap/imds-guard-dashboard metadata annotations g", `"h"`},
			},
		},
		{
			"cleanup with a hook", []string{"cleanup.onUninstall=true", "agent.interface={eni+,vlan+}"},
			[]check{
				{"DaemonSet/imds-guard-cleanup metadata annotations",
					`{"helm.sh/hook":"post-delete","helm.sh/hook-delete-policy":"before-hook-creation"}`},
				{"DaemonSet/imds-guard-cleanup spec template spec initContainers cleanup args", `["cleanup","--interface=eni+,vlan+"]`},
			},
		},
		{
			"hardened cleanup", []string{"cleanup.run=true", "hardened=true"},
			[]check{{"DaemonSet/imds-guard-cleanup spec template spec initContainers cleanup securityContext", hardened}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// Most are about the metrics address, which the kubelet's probes then use too.
			docs := mustRender(t, append([]string{"agent.healthBindAddress=", "agent.probeInterval=0s"}, tt.values...)...)
			docs.check(t, tt.checks)
			acceptArgs(t, docs)
		})
	}
}

// acceptArgs holds the arguments of the agent, if it is there, against the program.
func acceptArgs(t *testing.T, docs documents) {
	t.Helper()
	list, _ := at(map[string]any(docs), agent+"args").([]any)
	if list == nil {
		return
	}
	var args []string
	for _, a := range list[1:] {
		args = append(args, strings.ReplaceAll(a.(string), "$(HOST_IP)", "192.0.2.1"))
	}
	options := config.NewOptions()
	flags := pflag.NewFlagSet("run", pflag.ContinueOnError)
	options.AddTo(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatalf("parsing %v: %v", args, err)
	}
	if _, err := options.Load(); err != nil {
		t.Errorf("loading %v: %v", args, err)
	}
}

// What the agent's token may do grows by what the settings need, and by nothing else. The Role, for events about Nodes, is always
// the same.
func TestRights(t *testing.T) {
	for _, tt := range []struct {
		values []string
		rules  string
	}{
		{nil, nodeRules + podsRule + eventsRule},
		{[]string{"agent.attribution=true"}, nodeRules + podsRule + eventsRule},
		{[]string{"agent.mode=audit"}, nodeRules + podsRule + eventsRule},
		{[]string{"agent.hostNetworkPods=block"}, nodeRules + podsRule + eventsRule},
		{[]string{"agent.kubernetes=on"}, nodeRules + podsRule + eventsRule},
		{[]string{"cleanup.run=true"}, nodeRules + podsRule + eventsRule},
		{[]string{"agent.attribution=off"}, nodeRules},
		{[]string{"agent.attribution=false"}, nodeRules},
		{[]string{"agent.attribution=off", "agent.hostNetworkPods=audit"}, nodeRules + podsRule},
		{[]string{"agent.attribution=off", "agent.hostNetworkPods=block"}, nodeRules + podsRule},
		// Nobody is seen to ask.
		{[]string{"agent.layers={iptables,route}"}, nodeRules},
	} {
		t.Run(strings.Join(tt.values, ","), func(t *testing.T) {
			docs := mustRender(t, tt.values...)
			docs.check(t, []check{
				{"ClusterRole/imds-guard rules", "[" + tt.rules + "]"},
				{"Role/imds-guard metadata namespace", `"default"`},
				{"Role/imds-guard rules", "[" + eventsRule[1:] + "]"},
			})
			if pods := len(docs.validations(t, eventsPolicy)) > len(nodeEvents); pods != strings.HasSuffix(tt.rules, eventsRule) {
				t.Errorf("events about pods: by the admission policy %t, and by RBAC %t", pods, !pods)
			}
		})
	}
}

// validations are a policy's expressions, by what is said to whom they refuse.
func (d documents) validations(t *testing.T, policy string) map[string]string {
	t.Helper()
	list, _ := at(map[string]any(d), policy+"validations").([]any)
	found := map[string]string{}
	for i := range list {
		message, _ := at(list, strconv.Itoa(i)+" message").(string)
		expression, _ := at(list, strconv.Itoa(i)+" expression").(string)
		if message == "" || found[message] != "" || at(list, strconv.Itoa(i)+" reason") != "Forbidden" {
			t.Errorf("validation %d of %s has the message %q: it has to have one of its own, and the reason Forbidden", i, policy, message)
		}
		found[message] = strings.Join(strings.Fields(expression), " ")
	}
	return found
}

// aboutNode: an event is about the agent's own node.
const aboutNode = `e.involvedObject.?kind.orValue('') == 'Node' && e.involvedObject.?name.orValue('') == variables.ownNode`

// What the events policy asks of each event; of those of an agent that names no pods; and of one's that does.
var (
	ownEvents = map[string]string{
		"the imds-guard agent may not delete events":                  `request.operation != 'DELETE'`,
		"the imds-guard agent may record events only in its own name": `variables.events.all(e, e.?source.?component.orValue('') == 'imds-guard')`,
	}
	nodeEvents = with(ownEvents, map[string]string{
		"the imds-guard agent may record events only about the node that its token is bound to": `variables.ownNode != '' && variables.events.all(e, ` + aboutNode + `)`,
	})
	podEvents = with(ownEvents, map[string]string{
		"the imds-guard agent may record events only about the node that its token is bound to, and about pods": `variables.ownNode != '' && variables.events.all(e, ` +
			aboutNode + ` || e.involvedObject.?kind.orValue('') == 'Pod')`,
		"the imds-guard agent may record events about its node only in the namespace default":                           `variables.events.size() == variables.aboutPods.size() || request.namespace == 'default'`,
		"the imds-guard agent may record events about a pod only in the pod's own namespace":                            `variables.aboutPods.all(e, e.involvedObject.?namespace.orValue('') == request.namespace)`,
		"the imds-guard agent may record events about pods only with the reason IMDSAccessBlocked or IMDSAccessAudited": `variables.aboutPods.all(e, e.?reason.orValue('') in ['IMDSAccessBlocked', 'IMDSAccessAudited'])`,
		"the imds-guard agent may record events about pods only as seen from the node that its token is bound to": `variables.aboutPods.all(e, e.?source.?host.orValue('') == variables.ownNode && ` +
			`e.?reportingInstance.orValue('') in ['', variables.ownNode])`,
	})
)

func with(some, more map[string]string) map[string]string {
	all := maps.Clone(some)
	maps.Copy(all, more)
	return all
}

// The events policy lets through what pkg/node records, under its reasons, and nothing else.
func TestEventsPolicy(t *testing.T) {
	for _, reason := range []string{node.EventBlocked, node.EventAudited} {
		if !strings.Contains(fmt.Sprint(podEvents), "'"+reason+"'") {
			t.Errorf("events with the reason %s, which the agent records, are refused", reason)
		}
	}
	aboutPods := `{"expression":"variables.events.filter(e, e.involvedObject.?kind.orValue('') == 'Pod')","name":"aboutPods"}`
	for _, tt := range []struct {
		attribution string
		want        map[string]string
		variable    string
	}{{"on", podEvents, aboutPods}, {"off", nodeEvents, "null"}} {
		docs := mustRender(t, "agent.attribution="+tt.attribution)
		docs.check(t, []check{{eventsPolicy + "variables aboutPods", tt.variable}})
		if got := docs.validations(t, eventsPolicy); !maps.Equal(got, tt.want) {
			t.Errorf("attribution %s:\n got %q\nwant %q", tt.attribution, got, tt.want)
		}
	}
}

func TestWithoutKubernetes(t *testing.T) {
	for _, off := range []string{"off", "false"} {
		docs := mustRender(t, "agent.kubernetes="+off)
		docs.kinds(t, "ServiceAccount/imds-guard", "DaemonSet/imds-guard")
		docs.check(t, []check{
			{pod + "automountServiceAccountToken", `false`},
			{agent + "args", `["run","--interface=eni+","--probe-interval=5m","--kubernetes=off","--health-bind-address=127.0.0.1:9168"]`},
			{agent + "env", `[` + addresses + `]`},
		})
	}
}

// Templates read the files as they are: nothing in them may be taken for a template of Helm's.
func TestMonitoringIsWhatTheFilesSay(t *testing.T) {
	docs := mustRender(t, "prometheusRule.enabled=true", "dashboard.enabled=true")
	alerts, err := os.ReadFile(chart + "/files/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var want any
	if err := yaml.Unmarshal(alerts, &want); err != nil {
		t.Fatal(err)
	}
	for _, rule := range alertRules(want) {
		at(rule, "annotations").(map[string]any)["runbook_url"] = defaultRunbooks + at(rule, "alert").(string) + ".md"
		at(rule, "labels").(map[string]any)["namespace"] = "imds-guard"
	}
	if got := at(map[string]any(docs), "PrometheusRule/imds-guard spec"); !reflect.DeepEqual(got, want) {
		t.Errorf("the rules are\n%v\nwant\n%v", got, want)
	}
	dashboard, err := os.ReadFile(chart + "/files/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	got, _ := at(map[string]any(docs), "ConfigMap/imds-guard-dashboard data imds-guard.json").(string)
	if strings.TrimSpace(got) != strings.TrimSpace(string(dashboard)) {
		t.Errorf("the dashboard in the ConfigMap is not files/dashboard.json")
	}
}

// The agent keeps its rights until it is gone: so it can say that nobody watches the rules any more.
func TestCleanupInsteadOfTheAgent(t *testing.T) {
	mustRender(t, "cleanup.run=true", "podMonitor.enabled=true", "prometheusRule.enabled=true", "dashboard.enabled=true").
		kinds(t, "ServiceAccount/imds-guard", "ClusterRole/imds-guard", "ClusterRoleBinding/imds-guard", "Role/imds-guard",
			"RoleBinding/imds-guard", "ValidatingAdmissionPolicy/imds-guard", "ValidatingAdmissionPolicyBinding/imds-guard",
			"ValidatingAdmissionPolicy/imds-guard-events", "ValidatingAdmissionPolicyBinding/imds-guard-events",
			"DaemonSet/imds-guard-cleanup")
}

func TestWithoutAdmissionPolicy(t *testing.T) {
	mustRender(t, "admissionPolicy.enabled=false").kinds(t, "ServiceAccount/imds-guard", "ClusterRole/imds-guard",
		"ClusterRoleBinding/imds-guard", "Role/imds-guard", "RoleBinding/imds-guard", "DaemonSet/imds-guard")
}

// Whoever installs it is told whether anything is blocked.
func TestNotes(t *testing.T) {
	const audit, enforce, proof = "AUDIT MODE: imds-guard blocks nothing.", "--set agent.mode=enforce", "helm -n guards test imds-guard"
	for _, tt := range []struct {
		values     string
		has, lacks []string
	}{
		{"agent.mode=enforce", []string{proof, "kubectl imds-guard --namespace guards report\n"}, []string{audit, enforce}},
		{"agent.mode=audit", []string{audit, enforce, "kubectl imds-guard --namespace guards report", "get and create pods/exec"}, []string{proof, "pods stay blocked"}},
		{"agent.attribution=off", []string{proof}, []string{"kubectl imds-guard"}},
		{"agent.layers={iptables,route}", []string{proof}, []string{"kubectl imds-guard"}},
		{"nameOverride=guard", []string{"daemonset/guard\n", "report --selector=app.kubernetes.io/name=guard\n"}, nil},
		{"cleanup.run=true,agent.mode=audit", []string{"The cleanup runs"}, []string{audit}},
	} {
		cmd := exec.Command(helm(t), "install", "imds-guard", chart, "--namespace=guards", "--dry-run=client",
			"--set=image.repository="+placeholder, "--set="+tt.values)
		cmd.Env = append(os.Environ(), "KUBECONFIG="+os.DevNull) // it asks no cluster
		out, err := cmd.CombinedOutput()
		_, notes, found := strings.Cut(string(out), "\nNOTES:\n")
		if err != nil || !found {
			t.Fatalf("%s: %v: %s", tt.values, err, out)
		}
		for _, text := range tt.has {
			if !strings.Contains(notes, text) {
				t.Errorf("%s: the notes lack %q:\n%s", tt.values, text, notes)
			}
		}
		for _, text := range tt.lacks {
			if strings.Contains(notes, text) {
				t.Errorf("%s: the notes have %q:\n%s", tt.values, text, notes)
			}
		}
	}
}

func TestPolicies(t *testing.T) {
	for _, name := range []string{"services", "probes"} {
		mustRender(t, "agent.kubernetes=off", "policies."+name+"=true").kinds(t, "ServiceAccount/imds-guard", "DaemonSet/imds-guard",
			"ValidatingAdmissionPolicy/imds-guard-"+name, "ValidatingAdmissionPolicyBinding/imds-guard-"+name)
	}
}

// The error has to name the value.
func TestWrongValues(t *testing.T) {
	tests := []struct{ value, named string }{
		{"foo=1", "'foo'"},
		{"agent.foo=1", "'foo'"},
		{"agent.interface=eni+", "/agent/interface"},
		{"agent.interface={}", "/agent/interface"},
		{"agent.layers={}", "/agent/layers"},
		{"agent.layers={route,flow}", "/agent/layers/1"},
		{"agent.layers={cgroup}", "agent.layers: cgroup alone closes no path"},
		{"agent.layers={iptables,route},agent.hostNetworkPods=block", "agent.hostNetworkPods is for the layer cgroup"},
		{"agent.layers={iptables,route},agent.podsCgroup=/x", "agent.podsCgroup is for the layer cgroup"},
		{"agent.kubernetes=off,agent.hostNetworkPods=block,agent.hostNetworkNamespaces={kube-system,imds-guard}",
			"agent.hostNetworkNamespaces: agent.kubernetes is off"},
		{"agent.verdict=reject,agent.layers={route}", "agent.verdict is reject"},
		{"agent.mode=audit,agent.layers={iptables,route}", "agent.mode is audit, and only the layer cgroup sees who asks"},
		{"agent.mode=audit,agent.attribution=false", "agent.attribution is off, and audit mode has nothing to report then"},
		{"agent.mode=off", "/agent/mode"},
		{"agent.attribution=maybe", "/agent/attribution"},
		{"agent.podsCgroup=kubepods", "/agent/podsCgroup"},
		{"policies.probes=yes", "/policies/probes"},
		{"agent.interface={eni+,a/b}", "/agent/interface/1"},
		{"agent.interface={+}", "/agent/interface/0"},
		{"agent.interface={abcdefghijklmno+}", "/agent/interface/0"},
		{"agent.backend=iptables", "/agent/backend"},
		{"agent.verdict=accept", "/agent/verdict"},
		{"agent.resyncPeriod=10", "/agent/resyncPeriod"},
		{"agent.kubernetes=maybe", "/agent/kubernetes"},
		{"agent.metricsBindAddress=9169", "/agent/metricsBindAddress"},
		{"agent.metricsBindAddress=node:9169", "/agent/metricsBindAddress"},
		{"agent.metricsBindAddress=off,agent.healthBindAddress=", "agent.metricsBindAddress is off"},
		{"agent.metricsBindAddress=off,agent.healthBindAddress=:1,webConfig.secretName=web", "webConfig.secretName"},
		{"agent.healthBindAddress=127.0.0.1:9169", "agent.healthBindAddress"},
		{"agent.healthBindAddress=off", "/agent/healthBindAddress"},
		{"agent.logLevel=trace", "/agent/logLevel"},
		{"agent.logFormat=xml", "/agent/logFormat"},
		{"webConfig.file=../x", "/webConfig/file"},
		{"webConfig.tls=maybe", "/webConfig/tls"},
		{"image.digest=0123", "/image/digest"},
		{"image.tag=a b", "/image/tag"},
		{"image.pullPolicy=Sometimes", "/image/pullPolicy"},
		{"image.pullSecrets={a}", "/image/pullSecrets/0"},
		{"hardened=maybe", "/hardened"},
		{"admissionPolicy.enabled=1", "/admissionPolicy/enabled"},
		{"serviceAccount.name=A", "/serviceAccount/name"},
		{"cleanup.onUninstall=please", "/cleanup/onUninstall"},
		{"cleanup.onDelete=true", "'onDelete'"},
		{"podMonitor.interval=often", "/podMonitor/interval"},
		{"podMonitor.enabled=true,agent.metricsBindAddress=127.0.0.1:9169", "podMonitor.enabled"},
		{"resources.limit.memory=1Gi", "'limit'"},
		{"updateStrategy.type=Recreate", "/updateStrategy/type"},
		{"updateStrategy.rollingUpdate.maxUnavailable=0", "/updateStrategy/rollingUpdate/maxUnavailable"},
		{"updateStrategy.rollingUpdate.maxSurge=1", "'maxSurge'"},
		{"podLabels.a=true", "/podLabels/a"},
		{"image.repository=", "image.repository is required"},
		{"image.repository=null", "image.repository is required"},
		{"image.repository=,cleanup.run=true", "image.repository is required"},
		{"image.repository=example.com/imds-guard:v1", "/image/repository"},
		{"global.imageRegistry=a b", "/global/imageRegistry"},
		{"global.imageRegistry=https://mirror.example.com", "/global/imageRegistry"},
		{"imagePullSecrets={a}", "/imagePullSecrets/0"},
		{"nameOverride=Guard", "/nameOverride"},
		{"fullnameOverride=" + strings.Repeat("a", 51), "/fullnameOverride"},
		{`commonLabels.app\.kubernetes\.io/name=a`, "commonLabels: app.kubernetes.io/name selects the pods"},
		{`podLabels.app\.kubernetes\.io/name=a`, "podLabels: app.kubernetes.io/name selects the pods"},
		{"serviceAccount.create=false", "serviceAccount.create is false: say by serviceAccount.name"},
		{"extraArgs={--mode=audit}", "extraArgs: --mode has a value of its own, which the rest of the chart goes by: set agent.mode"},
		{"extraArgs={--metrics-bind-address,:1}", "set agent.metricsBindAddress"},
		{"agent.mode=null,extraArgs={--mode=audit}", "set agent.mode"},
		{"extraArgs={--web-config-file=/x}", "set webConfig.secretName"},
		{"extraArgs={--node-name,other}", "extraArgs: --node-name has a value of its own, which the rest of the chart goes by: leave it out"},
		{`podAnnotations.helm\.sh/hook-weight=a`, "podAnnotations: helm.sh/hook-weight is the chart's to set"},
		{"extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/run/imds-guard/", "extraVolumeMounts: a volume at /run/imds-guard covers /run/imds-guard"},
		{"extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/host//sys/fs", "covers /host/sys/fs/bpf"},
		{"extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/", "extraVolumeMounts: a volume at / covers "},
		{"extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/usr", "extraVolumeMounts: a volume at /usr covers "},
		{"extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/var/run", "extraVolumeMounts: a volume at /run covers "},
		{"extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/lib", "extraVolumeMounts: a volume at /usr/lib covers "},
		{"webConfig.secretName=a,extraVolumeMounts[0].name=x,extraVolumeMounts[0].mountPath=/etc/imds-guard", "covers /etc/imds-guard/web"},
		{"extraEnv[0].name=POD_IP", "extraEnv: POD_IP is set by the chart"},
		{"extraEnv[0].nam=A", "/extraEnv/0"},
		{"podMonitor.scrapeTimeout=10", "/podMonitor/scrapeTimeout"},
		{"podMonitor.namespace=A", "/podMonitor/namespace"},
		{"prometheusRule.enabled=true,prometheusRule.alerts.ImdsGuardNotProtectet.for=1h",
			"prometheusRule.alerts.ImdsGuardNotProtectet: there is no such alert; there are ImdsGuardNotProtected, "},
		{"prometheusRule.alerts.ImdsGuardNotProtected.severty=page", "'severty'"},
		{"prometheusRule.alerts.ImdsGuardNotProtected.for=soon", "/prometheusRule/alerts/ImdsGuardNotProtected/for"},
		{"test.tolerations={a}", "/test/tolerations/0"},
		{"test.node=a b", "/test/node"},
		{"namespace.create=true", "namespace.create is gone"},
	}
	for _, tt := range tests {
		_, stderr, err := render(t, tt.value)
		if err == nil || !strings.Contains(stderr, tt.named) {
			t.Errorf("%s: want an error that names %s, got %v: %s", tt.value, tt.named, err, stderr)
		}
	}
}

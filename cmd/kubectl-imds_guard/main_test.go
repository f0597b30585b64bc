package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/report"
	"github.com/imds-guard/imds-guard/pkg/request"
)

// says returns an agent with this answer.
func says(text string) agentFunc {
	return func(stdout, _ io.Writer, _ <-chan struct{}) int {
		_, _ = io.WriteString(stdout, text)
		return 0
	}
}

// reports returns a working agent with this report.
func reports(t *testing.T, n report.Node) agentFunc {
	t.Helper()
	n.Mode, n.Version = "audit", "v1"
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	return says(string(text))
}

// dead never answers.
func dead(_, _ io.Writer, end <-chan struct{}) int {
	<-end
	return 0
}

// plugin runs the plugin.
func plugin(t *testing.T, flags []string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append(args, flags...), &out, &errs)
	return code, out.String(), errs.String()
}

// reasons returns the reasons of the unanswered nodes, by name.
func reasons(d document) map[string]string {
	m := map[string]string{}
	for _, u := range d.Unanswered {
		m[u.Node] = u.Reason
	}
	return m
}

func parseJSON(t *testing.T, text string) (d document) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &d); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return d
}

// Of five hundred nodes, some of which are slow, dead or return garbage, exactly these are reported, and the counts of the
// others are added up.
func TestManyNodes(t *testing.T) {
	var s standIn
	want := map[string]string{}
	var audited uint64
	pods := 0
	for i := range 500 {
		node := fmt.Sprintf("node-%03d", i)
		good := reports(t, report.Node{Node: "somebody-else", Protected: true, Workloads: []report.Workload{{
			Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: 1, Audited: uint64(i),
			Requests: []report.Request{{Version: request.V2, Document: request.Credentials, Agent: "Boto3/1", Count: 1}},
		}, {
			Namespace: "shop", Kind: "Pod", Name: node, Pods: 1, Blocked: 1,
		}}})
		switch {
		case i%50 == 7: // 10
			s.addNode(node, dead)
			s.mute["imds-guard-"+node] = i%100 == 7
			want[node] = "no answer within "
		case i%100 == 11: // 5
			s.addNode(node, says([]string{"", "no JSON", "{}", `{"mode":"audit"`, "\x00\xff"}[i/100]))
			want[node] = "its answer is not a report"
		case i%100 == 13: // 5
			s.addNode(node, func(stdout, stderr io.Writer, _ <-chan struct{}) int {
				fmt.Fprintln(stdout, "{}")
				fmt.Fprint(stderr, "a line\nimds-guard: no agent runs here\n")
				return 3
			})
			want[node] = "`imds-guard report` exited with code 3: imds-guard: no agent runs here"
		case i == 17:
			s.addNode(node, func(stdout, _ io.Writer, _ <-chan struct{}) int {
				for part := bytes.Repeat([]byte("x"), 1<<15); ; {
					if _, err := stdout.Write(part); err != nil {
						return 0
					}
				}
			})
			want[node] = errTooLong.Error()
		default:
			agent := good
			if i%25 == 19 { // 20
				agent = func(stdout, stderr io.Writer, end <-chan struct{}) int {
					time.Sleep(time.Second)
					return good(stdout, stderr, end)
				}
			}
			s.addNode(node, agent)
			audited += uint64(i)
			pods++
		}
	}
	flags := s.start(t)
	var code int
	var stdout, stderr string
	var d document
	var got map[string]string
	// On a machine that is busy with other things, also a node that is well may be too late: then all get more time.
	for _, timeout := range []string{"2s", "10s", "1m"} {
		began := time.Now()
		code, stdout, stderr = plugin(t, flags, "report", "-o", "json", "--timeout", timeout)
		t.Logf("500 nodes, --timeout=%s: %s", timeout, time.Since(began).Round(10*time.Millisecond))
		d = parseJSON(t, stdout)
		got = reasons(d)
		late := slices.ContainsFunc(d.Unanswered, func(u unanswered) bool {
			return strings.HasPrefix(u.Reason, "no answer") && !strings.HasPrefix(want[u.Node], "no answer")
		})
		if !late {
			break
		}
	}
	if code != command.Failed {
		t.Errorf("exit code %d", code)
	}
	for node, why := range want {
		if !strings.HasPrefix(got[node], why) {
			t.Errorf("%s: got the reason %q, want %q", node, got[node], why)
		}
		if !strings.Contains(stderr, "kubectl imds-guard: "+node+": "+why) {
			t.Errorf("%s is not named by a line on stderr", node)
		}
	}
	if len(got) != len(want) || len(d.Nodes) != pods {
		t.Errorf("%d nodes have answered and %d have not; want %d and %d", len(d.Nodes), len(got), pods, len(want))
	}
	if !strings.HasSuffix(stderr, fmt.Sprintf("kubectl imds-guard: %d of 500 nodes did not answer\n", len(want))) {
		t.Errorf("stderr: %s", stderr)
	}
	if slices.ContainsFunc(d.Nodes, func(n report.Node) bool { return !strings.HasPrefix(n.Node, "node-") }) {
		t.Error("a node speaks for another")
	}
	rows := *d.Workloads
	cart := advised{report.Workload{
		Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: pods, Audited: audited,
		Requests: []report.Request{{Version: request.V2, Document: request.Credentials, Agent: "Boto3/1", Count: uint64(pods)}},
	}, rows[0].Advice}
	if len(rows) != 1+pods || !reflect.DeepEqual(rows[0], cart) {
		t.Errorf("%d rows, the first %+v; want %d, and %+v", len(rows), rows[0], 1+pods, cart)
	}
	if !strings.Contains(rows[0].Advice, "EKS Pod Identity") {
		t.Errorf("advice: %q", rows[0].Advice)
	}
}

// Nodes without a running agent are not asked; and of two agents on a node, the running one is.
func TestTargets(t *testing.T) {
	s := standIn{asked: make(chan string, 10)}
	s.addNode("a", reports(t, report.Node{}))
	s.addNode("b", nil)
	s.pods[1].Status.ContainerStatuses[0].State = corev1.ContainerState{
		Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}

	leaving := *s.pods[0].DeepCopy()
	leaving.Name, leaving.DeletionTimestamp = "old", &metav1.Time{Time: time.Now()}
	pending := *s.pods[1].DeepCopy()
	pending.Name, pending.Spec.NodeName = "pending", ""
	other := *s.pods[0].DeepCopy()
	other.Name, other.Spec.NodeName, other.Spec.Containers[0].Name = "other", "c", "pause"
	s.pods = append(s.pods, leaving, pending, other)

	s.nodes["bare"] = nil
	s.nodes["win"] = map[string]string{corev1.LabelOSStable: "windows"}
	s.nodes["home"] = map[string]string{"eks.amazonaws.com/compute-type": "hybrid", corev1.LabelOSStable: "linux"}
	s.nodes["far"] = map[string]string{"eks.amazonaws.com/compute-type": "fargate", corev1.LabelOSStable: "linux"}
	flags := s.start(t)

	code, stdout, stderr := plugin(t, flags, "status", "-o", "json")
	want := map[string]string{
		"b":    "its agent's pod imds-guard-b is not running: CrashLoopBackOff",
		"bare": "no agent runs there",
	}
	d := parseJSON(t, stdout)
	if got := reasons(d); code != command.Failed || !reflect.DeepEqual(got, want) || len(d.Nodes) != 1 || d.Workloads != nil {
		t.Errorf("code %d, unanswered %q, want %q; %s%s", code, got, want, stdout, stderr)
	}
	if close(s.asked); <-s.asked != "imds-guard-a" || <-s.asked != "" {
		t.Error("others than a's agent were asked")
	}
}

// The chart's nameOverride gives the agents' pods another label.
func TestSelector(t *testing.T) {
	s := standIn{selector: "app.kubernetes.io/name=guard"}
	s.addNode("a", reports(t, report.Node{}))
	code, stdout, stderr := plugin(t, s.start(t), "status", "-l", s.selector, "-o", "json")
	if d := parseJSON(t, stdout); code != command.OK || len(d.Nodes) != 1 || stderr != "" {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
}

func TestOneNode(t *testing.T) {
	var s standIn
	s.addNode("a", reports(t, report.Node{}))
	s.addNode("b", dead)
	flags := s.start(t)
	code, stdout, stderr := plugin(t, flags, "report", "--node", "a", "-o", "json")
	if d := parseJSON(t, stdout); code != command.OK || len(d.Nodes) != 1 || d.Nodes[0].Node != "a" || stderr != "" {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
	code, _, stderr = plugin(t, flags, "report", "--node", "c")
	if code != command.Usage || !strings.Contains(stderr, `--node: the cluster has no node "c"`) {
		t.Errorf("code %d: %s", code, stderr)
	}
}

// A user who may not list nodes is told so once, and gets the agents' answers all the same.
func TestNodesForbidden(t *testing.T) {
	var s standIn
	s.addNode("a", reports(t, report.Node{}))
	s.nodes = nil
	code, stdout, stderr := plugin(t, s.start(t), "report", "-o", "json")
	if code != command.OK || len(parseJSON(t, stdout).Nodes) != 1 || stderr != "kubectl imds-guard: "+errNodesUnseen.Error()+"\n" {
		t.Errorf("code %d: %s%s", code, stdout, stderr)
	}
}

func TestExecForbidden(t *testing.T) {
	var s standIn
	s.addNode("a", nil)
	code, stdout, _ := plugin(t, s.start(t), "report", "-o", "json")
	why := reasons(parseJSON(t, stdout))["a"]
	if code != command.Failed || !strings.HasPrefix(why, "you need permission to get and create pods/exec in namespace imds-guard: ") {
		t.Errorf("code %d: %s", code, stdout)
	}
}

// An API server that knows no WebSockets, and a user who may not begin one.
func TestSPDY(t *testing.T) {
	trySPDY(t, &standIn{old: true})
	trySPDY(t, &standIn{createOnly: true})
}

func trySPDY(t *testing.T, s *standIn) {
	t.Helper()
	s.addNode("a", reports(t, report.Node{Protected: true}))
	s.addNode("b", func(_, stderr io.Writer, _ <-chan struct{}) int {
		fmt.Fprintln(stderr, "no")
		return 4
	})
	code, stdout, _ := plugin(t, s.start(t), "report", "-o", "json")
	d := parseJSON(t, stdout)
	if code != command.Failed || len(d.Nodes) != 1 || !d.Nodes[0].Protected || !strings.HasSuffix(reasons(d)["b"], "exited with code 4: no") {
		t.Errorf("code %d: %s", code, stdout)
	}
}

// Ctrl-C ends it, whatever the nodes do. If it doesn't, this test doesn't end.
func TestInterrupted(t *testing.T) {
	for _, s := range []*standIn{{}, {old: true}} {
		s.asked = make(chan string, 10)
		for _, node := range []string{"a", "b"} {
			s.addNode(node, dead)
		}
		s.mute["imds-guard-a"] = true
		flags := s.start(t)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			for range 2 {
				<-s.asked
			}
			cancel()
		}()
		var stdout, stderr bytes.Buffer
		code := run(ctx, append(flags, "report", "--timeout", "1h"), &stdout, &stderr)
		if code != command.Failed || stdout.Len() > 0 || !strings.Contains(stderr.String(), "interrupted") {
			t.Errorf("code %d: %s%s", code, &stdout, &stderr)
		}
	}
}

// Text from pods and nodes reaches the terminal without characters that the terminal would interpret.
func TestHostileText(t *testing.T) {
	const evil = "\x1b]0;x\x07\u009b2J\u202e\x7f\r\n\U000e0001"
	var s standIn
	s.addNode("a", reports(t, report.Node{Incomplete: evil, Workloads: []report.Workload{{
		Namespace: evil, Kind: evil, Name: evil, Blocked: 1, Commands: []string{evil},
		Requests: []report.Request{{Version: evil, Document: evil, Agent: evil}},
	}}}))
	s.addNode("b", func(_, stderr io.Writer, _ <-chan struct{}) int {
		_, _ = io.WriteString(stderr, "\x1b[2J\u009b\r")
		return 1
	})
	flags := s.start(t)
	for _, args := range [][]string{
		{"report"}, {"status"}, {"report", "-o", "json"}, {"report", "-o", "yaml"}, {"status", "-o", "json"},
	} {
		code, stdout, stderr := plugin(t, flags, args...)
		if code != command.Failed || stdout == "" {
			t.Errorf("%q: code %d: %s%s", args, code, stdout, stderr)
		}
		for _, r := range stdout + stderr {
			if r == '\n' || slices.Contains(args, "yaml") && !unicode.IsControl(r) { // in YAML, invisible characters are for the reader
				continue
			}
			if !unicode.IsPrint(r) {
				t.Errorf("%q writes %U", args, r)
			}
		}
		var d document
		switch {
		case slices.Contains(args, "json"):
			d = parseJSON(t, stdout)
		case slices.Contains(args, "yaml"):
			if err := yaml.Unmarshal([]byte(stdout), &d); err != nil {
				t.Fatalf("%v in %s", err, stdout)
			}
		default:
			continue
		}
		if len(d.Nodes) != 1 || d.Nodes[0].Incomplete != evil {
			t.Errorf("%q: %q has become %+v", args, evil, d.Nodes)
		}
	}
}

func TestText(t *testing.T) {
	var s standIn
	s.addNode("a", reports(t, report.Node{Protected: true, Workloads: []report.Workload{{
		Namespace: "shop", Kind: "Deployment", Name: "cart", Blocked: 3}}}))
	flags := s.start(t)
	for name, want := range map[string]string{"report": "Deployment/cart", "status": "1 of 1 node protected."} {
		if code, stdout, stderr := plugin(t, flags, name); code != command.OK || !strings.Contains(stdout, want) || stderr != "" {
			t.Errorf("%s: code %d: %s%s", name, code, stdout, stderr)
		}
	}
}

func TestUsage(t *testing.T) {
	var s standIn
	s.addNode("a", dead)
	flags := s.start(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, command.Usage, "name a command"},
		{[]string{"repotr"}, command.Usage, "unknown command"},
		{[]string{"report", "node-1"}, command.Usage, "unknown command"},
		{[]string{"report", "--nodes"}, command.Usage, "--nodes"},
		{[]string{"report", "-o", "xml"}, command.Usage, `--output: "xml" is not valid; use text, json or yaml`},
		{[]string{"report", "--selector", "a b"}, command.Usage, "--selector: \"a b\" selects no label; use a label of the agents' pods, such as " + agentLabel},
		{[]string{"status", "--selector="}, command.Usage, "--selector: \"\" selects no label"},
		{[]string{"report", "--parallel", "0"}, command.Usage, "--parallel: 0 would ask no node; use 1 or more"},
		{[]string{"status", "--timeout", "0s"}, command.Usage, "--timeout: 0s leaves no time"},
		{[]string{"report", "--context", "nowhere"}, command.Usage, "--context"},
		{[]string{"report", "--kubeconfig", "/nowhere"}, command.Usage, "--kubeconfig"},
		{[]string{"report", "-n", "empty"}, command.Failed, "give the right one with --namespace"},
		{[]string{"report", "--server", "http://127.0.0.1:1"}, command.Failed, "listing the agents' pods"},
		{[]string{"version"}, command.OK, ""},
	} {
		// The last --kubeconfig counts.
		code, stdout, stderr := plugin(t, nil, append(slices.Clone(flags), c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.want) {
			t.Errorf("%q: code %d, want %d with %q: %s%s", c.args, code, c.code, c.want, stdout, stderr)
		}
	}
	if _, stdout, _ := plugin(t, nil, "report", "--help"); !strings.Contains(stdout, "kubectl imds-guard report [flags]") {
		t.Errorf("help: %s", stdout)
	}
}

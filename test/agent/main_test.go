// Package agent tests the program as it is deployed: the binary, on throwaway nodes, with real packets, against the tools that
// break rules in real life.
package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

var counters = regexp.MustCompile(`\[\d+:\d+\]`)

// binary is imds-guard, built with the race detector; where there is no Go, IMDS_GUARD_BINARY names one.
var binary = os.Getenv("IMDS_GUARD_BINARY")

func TestMain(m *testing.M) {
	if testnode.RunSocketCalls() {
		return
	}
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if binary != "" {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "imds-guard-test")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "imds-guard")
	build := exec.Command("go", "build", "-race", "-o", binary, "../../cmd/imds-guard")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building imds-guard: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// deadline is how long a test waits for what it expects: long enough for the slowest machine, since nothing is proved by
// the time that something took.
const deadline = 60 * time.Second

// eventually waits until f is true. Always use it for what the agent says about its state: on a busy machine a look may come so
// late that the last reading is out of date, and that is not a fault.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for start := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > deadline {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// node is a throwaway node with a pod.
type node struct {
	*testnode.Node
	t   *testing.T
	pod *testnode.Pod
	// layers are those that run and check are told of: iptables' alone, unless a test is about others, since whatever that
	// one does wrong would not show behind another.
	layers string
	// inPod: agents run in the cgroup of a pod, as those of a DaemonSet do.
	inPod bool
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := testnode.Make(t)
	pod, err := n.AddPod("eni0123456789a")
	if err != nil {
		t.Fatal(err)
	}
	return &node{Node: n, t: t, pod: pod, layers: rules.LayerName}
}

// sh runs a script on the node and returns its output.
func (n *node) sh(format string, args ...any) string {
	n.t.Helper()
	out, err := n.try(format, args...)
	if err != nil {
		n.t.Fatalf("running %q on the node: %v\n%s", fmt.Sprintf(format, args...), err, out)
	}
	return out
}

// try is sh for a script that may fail.
func (n *node) try(format string, args ...any) (string, error) {
	out, err := n.Command(context.Background(), "sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
	return string(out), err
}

// guard runs an imds-guard command that ends.
func (n *node) guard(args ...string) (code int, stdout, stderr string) {
	n.t.Helper()
	if args[0] == "check" {
		args = append([]string{"check", "--layers", n.layers}, args[1:]...)
	}
	return run(n.t, n.Command(context.Background(), binary, args...))
}

func run(t *testing.T, cmd *exec.Cmd) (code int, stdout, stderr string) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errOut.String()
}

// variant is one backend and one family.
type variant struct {
	backend rules.Backend
	family  imds.Family
}

var variants = []variant{
	{rules.NFT, imds.IPv4}, {rules.NFT, imds.IPv6}, {rules.Legacy, imds.IPv4}, {rules.Legacy, imds.IPv6},
}

func (v variant) String() string { return string(v.backend) + "-" + string(v.family) }

// iptables is the variant's command.
func (v variant) iptables() string {
	if v.family == imds.IPv6 {
		return "ip6tables-" + string(v.backend)
	}
	return "iptables-" + string(v.backend)
}

func (v variant) address() string { return v.family.Endpoint().Addr().String() }

// url is the endpoint's.
func (v variant) url() string {
	if v.family == imds.IPv6 {
		return "http://[" + v.address() + "]/latest/meta-data/instance-id"
	}
	return "http://" + v.address() + "/latest/meta-data/instance-id"
}

// ours is the one rule that is wanted by default, as iptables prints it.
func (v variant) ours() string { return v.desired(policy.Drop, "eni+")[0] }

func (v variant) desired(verdict policy.Verdict, patterns ...string) (texts []string) {
	var parsed []ifpattern.Pattern
	for _, text := range patterns {
		p, err := ifpattern.Parse(text)
		if err != nil {
			panic(err)
		}
		parsed = append(parsed, p)
	}
	for _, r := range rules.Desired(v.family, policy.New(parsed, verdict)) {
		texts = append(texts, r.String())
	}
	return texts
}

// forward lists the rules of FORWARD.
func (n *node) forward(v variant) (list []string) {
	n.t.Helper()
	out := n.sh("%s -w -S FORWARD", v.iptables())
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "-A ") {
			list = append(list, strings.TrimSpace(line))
		}
	}
	return list
}

// packets is the packet count of the first rule of FORWARD.
func (n *node) packets(v variant) int {
	n.t.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(n.sh("%s -w -S FORWARD -v | sed -n '2s/.* -c \\([0-9]*\\) .*/\\1/p'", v.iptables())))
	if err != nil {
		n.t.Fatal(err)
	}
	return count
}

// onTop reports whether our rule is first, and there once.
func (n *node) onTop(v variant) bool {
	list := n.forward(v)
	return len(list) > 0 && list[0] == v.ours() && count(list, v.ours()) == 1
}

func count(list []string, item string) (n int) {
	for _, i := range list {
		if i == item {
			n++
		}
	}
	return n
}

// foreign is every rule, user-defined chain and policy on the node that is not ours, in order and without counters: text
// that must not change. Built-in chains with the policy that they have when a table is made are left out.
func (n *node) foreign() string {
	n.t.Helper()
	var b strings.Builder
	for _, v := range variants {
		if v.backend == rules.Legacy && n.sh("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names 2>/dev/null || true") == "" {
			continue // -save would load them
		}
		table := ""
		for line := range strings.Lines(n.sh("%s-save", v.iptables())) {
			switch {
			case strings.HasPrefix(line, "*"):
				table = strings.TrimSpace(line)
			case strings.HasPrefix(line, "-A") && !slices.Contains(v.desired(policy.Drop, "eni+"), strings.TrimSpace(line)),
				strings.HasPrefix(line, ":") && !strings.Contains(line, " ACCEPT "):
				fmt.Fprintf(&b, "%s %s %s", v, table, counters.ReplaceAllString(line, "[0:0]"))
			}
		}
	}
	return b.String()
}

// served tells whether the pod gets an answer from the endpoint.
func (n *node) served(v variant) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := n.pod.Get(ctx, v.url())
	return err == nil
}

// answered tells whether the pod gets an answer from the endpoint at once.
func (n *node) answered(v variant) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	_, err := n.pod.Get(ctx, v.url())
	return err == nil
}

// record is what the agent has recorded on the node.
func (n *node) record() string {
	n.t.Helper()
	return n.sh("cat /run/imds-guard/*/* 2>/dev/null || true")
}

// mustBeBlocked fails the test if the pod reaches the endpoint, and also if anything other than a rule could be the reason why
// it doesn't: the endpoint has to answer the node, and others have to answer the pod, in the same family. A dropped connect
// only ever times out.
func (n *node) mustBeBlocked(v variant) {
	n.t.Helper()
	before := n.IMDS().Requests()
	if n.answered(v) || n.IMDS().Requests() != before {
		n.t.Errorf("%s: a pod got an answer from the endpoint", v)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if _, err := n.Host().Get(ctx, v.url()); err != nil {
		n.t.Errorf("%s: the endpoint does not answer the node either: %v", v, err)
	}
	elsewhere := map[imds.Family]string{imds.IPv4: testnode.Elsewhere4, imds.IPv6: "[" + testnode.Elsewhere6 + "]"}[v.family]
	if _, err := n.pod.Get(ctx, "http://"+elsewhere+"/"); err != nil {
		n.t.Errorf("%s: the pod reaches nobody: %v", v, err)
	}
}

// agent is a running imds-guard.
type agent struct {
	node *node
	cmd  *exec.Cmd
	log  *testnode.Log
	done chan struct{}
}

// start starts the agent without waiting for anything.
func (n *node) start(args ...string) *agent {
	n.t.Helper()
	return n.startWith(nil, args...)
}

// startWith is start with additional environment variables.
func (n *node) startWith(env []string, args ...string) *agent {
	n.t.Helper()
	args = append([]string{"run", "--kubernetes", "off", "--metrics-bind-address", "127.0.0.1:9169", "--layers", n.layers}, args...)
	a := &agent{node: n, cmd: n.Command(context.Background(), binary, args...), log: &testnode.Log{}, done: make(chan struct{})}
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	a.cmd.Env = append(os.Environ(), env...)
	if n.inPod {
		container, err := n.InContainer(a.cmd)
		if err != nil {
			n.t.Fatal(err)
		}
		defer container.Close()
	}
	if err := a.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = a.cmd.Wait(); close(a.done) }()
	n.t.Cleanup(func() {
		a.kill()
		if strings.Contains(a.log.String(), "DATA RACE") {
			n.t.Error("the race detector found a data race in the agent")
		}
		if n.t.Failed() {
			n.t.Logf("the agent's log:\n%s", a.log)
		}
	})
	return a
}

// startReady starts the agent and waits until it says that the node is protected.
func (n *node) startReady(args ...string) *agent {
	n.t.Helper()
	a := n.start(args...)
	eventually(n.t, "the agent is ready", a.ready)
	return a
}

func (a *agent) signal(s syscall.Signal) {
	a.node.t.Helper()
	if err := a.cmd.Process.Signal(s); err != nil {
		a.node.t.Fatalf("signalling the agent: %v", err)
	}
}

// kill ends the agent as SIGKILL does, and waits for its end.
func (a *agent) kill() {
	_ = a.cmd.Process.Kill()
	<-a.done
}

func (a *agent) get(path string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return a.node.Host().Get(ctx, "http://127.0.0.1:9169"+path)
}

func (a *agent) ready() bool {
	_, err := a.get("/readyz")
	return err == nil
}

// metric is the value of a series as it stands in the exposition, e.g. `imds_guard_drift_total{family="ipv4",…}`; -1 if
// it is not there.
func (a *agent) metric(series string) float64 {
	text, err := a.get("/metrics")
	if err != nil {
		return -1
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, series+" "); ok {
			number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				a.node.t.Fatalf("parsing %q: %v", line, err)
			}
			return number
		}
	}
	return -1
}

func (a *agent) drift(v variant, reason layer.State) float64 {
	return a.metric(fmt.Sprintf(`imds_guard_drift_total{family="%s",layer="iptables",reason="%s"}`, v.family, reason))
}

func (a *agent) state(v variant, s layer.State) bool {
	return a.metric(fmt.Sprintf(`imds_guard_rule_state{family="%s",layer="iptables",state="%s"}`, v.family, s)) == 1
}

// uses reports whether the agent says that it uses a backend, in whatever version.
func (a *agent) uses(backend string) bool {
	text, err := a.get("/metrics")
	return err == nil && strings.Contains(text, fmt.Sprintf("imds_guard_backend_info{backend=%q,", backend))
}

// awaitLooks waits until a layer has been looked at n more times.
func (a *agent) awaitLooks(v variant, n float64) {
	a.node.t.Helper()
	looks := fmt.Sprintf(`imds_guard_looks_total{family="%s",layer="iptables"}`, v.family)
	before := a.metric(looks)
	if before < 0 {
		a.node.t.Fatal("the agent counts no looks")
	}
	eventually(a.node.t, "there were some more looks", func() bool { return a.metric(looks) >= before+n })
}

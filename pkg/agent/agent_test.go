package agent

import (
	"errors"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// stillLayer is always in the same state, and hangs if told to.
type stillLayer struct {
	id    layer.ID
	state layer.State
	hang  chan struct{}
}

func (l stillLayer) ID() layer.ID { return l.id }

func (l stillLayer) Look(policy.Policy, func(string)) layer.Finding {
	if l.hang != nil {
		<-l.hang
	}
	return layer.Finding{Reading: layer.Reading{State: l.state}}
}

func (l stillLayer) Repair(policy.Policy, layer.Finding) error {
	return errors.New("it can't be repaired")
}

// /healthz fails when a keeper's last look was too long ago, and only then: being unprotected is no reason to be restarted.
func TestHealthy(t *testing.T) {
	const resync = 10 * time.Second
	log := slog.New(slog.DiscardHandler)
	hang := make(chan struct{})
	g := guard.New(guard.Config{
		Resync: resync, Log: log, Recorder: recorder{metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, nil, nil), newCluster(), func(layer.ID) {}},
		Layers: []guard.Layer{
			stillLayer{id: layer.ID{Name: "a", Family: imds.IPv4}, state: layer.Missing},
			stillLayer{id: layer.ID{Name: "b", Family: imds.IPv4}, state: layer.Enforced, hang: hang},
		},
	})
	a := &agent{config: config.Config{Resync: resync}, guard: g, started: time.Now()}
	if err := a.healthy(); err != nil {
		t.Errorf("right after the start: %v", err)
	}
	go g.Run(t.Context())
	for g.Status().Layers[0].At.IsZero() {
		time.Sleep(time.Millisecond)
	}
	a.started = time.Now().Add(-3*resync - stuckAfter - time.Second)
	if err := a.healthy(); err == nil || !strings.Contains(err.Error(), "b ipv4") {
		t.Errorf("a keeper hangs since the start: %v", err)
	}
	close(hang)
	g.First(time.Minute)
	if err := a.healthy(); err != nil {
		t.Errorf("after a look at each: %v", err)
	}
}

func TestOutsideNode(t *testing.T) {
	for _, c := range []struct {
		pod, host, local string
		outside          bool
	}{
		{"", "", "10.0.0.1", false},
		{"10.0.0.1", "", "10.0.0.1", false},
		{"", "10.0.0.1", "10.0.0.9", false},
		{"10.0.0.1", "10.0.0.1", "10.0.0.9", false},
		{"::ffff:10.0.0.1", "10.0.0.1", "10.0.0.9", false},
		{"fd00:0::1", "fd00::1", "10.0.0.9", false},
		{"10.0.0.2", "10.0.0.1", "10.0.0.2", true},
		{"fd00::2", "fd00::1", "fd00::2", true},
		{"10.0.0.2", "fd00::1", "10.0.0.2", true},
		{"rubbish", "10.0.0.1", "10.0.0.2", true},
		{"10.0.0.2", "rubbish", "10.0.0.2", true},
		{"rubbish", "trash", "10.0.0.2", true},
		{"rubbish", "rubbish", "10.0.0.2", false},   // one address, whatever it is
		{"10.0.0.2", "fd00::1", "fd00::1", false},   // dual-stack
		{"10.0.0.2", "10.0.0.1", "10.0.0.1", false}, // the address has changed
	} {
		words := outside(c.pod, c.host, func() []net.Addr {
			return []net.Addr{&net.UnixAddr{}, &net.IPNet{IP: net.ParseIP(c.local)}}
		})
		if (words != "") != c.outside {
			t.Errorf("pod %q, host %q, here %q: %q", c.pod, c.host, c.local, words)
		}
	}
}

// The addresses come from the environment, and from the interfaces of this namespace.
func TestOutsideNodeByTheEnvironment(t *testing.T) {
	for _, c := range []struct {
		pod, host string
		outside   bool
	}{{"", "", false}, {"203.0.113.253", "203.0.113.253", false}, {"203.0.113.253", "203.0.113.254", true}, {"203.0.113.253", "127.0.0.1", false}} {
		t.Setenv("POD_IP", c.pod)
		t.Setenv("HOST_IP", c.host)
		words := OutsideNode()
		if (words != "") != c.outside {
			t.Errorf("pod %q, host %q: %q", c.pod, c.host, words)
		}
		if c.outside && !strings.Contains(words, "the pod's address 203.0.113.253 is not the node's, 203.0.113.254") {
			t.Errorf("it says %q", words)
		}
	}
}

// What is known to be wrong outweighs what is not known; within a family, a layer in force outweighs everything; and for
// interfaces, a layer that covers any of them.
func TestVerdict(t *testing.T) {
	var (
		in      = layer.Reading{State: layer.Enforced}
		all     = layer.Reading{State: layer.Enforced, AnyInterface: true}
		none    = layer.Reading{State: layer.Unsupported}
		noPath  = layer.Reading{State: layer.Unsupported, NoPath: true}
		out     = layer.Reading{State: layer.Missing}
		unknown = layer.Reading{State: layer.Unknown}
	)
	cali := CheckLinks{Uncovered: []string{"cali1"}}
	for _, c := range []struct {
		readings []layer.Reading // of the layers a ipv4, a ipv6, b ipv4, b ipv6
		links    CheckLinks
		want     error
	}{
		{[]layer.Reading{in, in}, CheckLinks{}, nil},
		{[]layer.Reading{in, noPath}, CheckLinks{}, nil},
		{[]layer.Reading{in, none}, CheckLinks{}, ErrNotProtected},
		{[]layer.Reading{{State: rules.Displaced}, {State: rules.Duplicate}}, CheckLinks{}, nil},
		{[]layer.Reading{in, in}, CheckLinks{Tunnels: []string{"flannel.1"}}, nil},
		{[]layer.Reading{none, none}, CheckLinks{}, ErrNotProtected},
		{[]layer.Reading{noPath, noPath}, CheckLinks{}, ErrNotProtected},
		{nil, CheckLinks{}, ErrNotProtected},
		{[]layer.Reading{unknown, out}, CheckLinks{}, ErrNotProtected},
		{[]layer.Reading{out, unknown}, CheckLinks{}, ErrNotProtected},
		{[]layer.Reading{unknown, in}, CheckLinks{}, ErrUnknown},
		{[]layer.Reading{in, unknown}, CheckLinks{}, ErrUnknown},
		{[]layer.Reading{in, in}, CheckLinks{Error: "no list"}, ErrUnknown},
		{[]layer.Reading{in, in}, cali, ErrNotProtected},
		{[]layer.Reading{unknown, in}, cali, ErrNotProtected},

		{[]layer.Reading{out, unknown, all, all}, CheckLinks{}, nil},
		{[]layer.Reading{out, out, all, all}, CheckLinks{Error: "no list"}, nil},
		{[]layer.Reading{out, in, unknown, all}, CheckLinks{}, ErrUnknown},
		{[]layer.Reading{unknown, in, out, all}, CheckLinks{}, ErrUnknown},
		{[]layer.Reading{out, in, out, all}, CheckLinks{}, ErrNotProtected},
		{[]layer.Reading{in, in, out, all}, CheckLinks{Error: "no list"}, ErrUnknown},
	} {
		var read []guard.LayerStatus
		for i, r := range c.readings {
			read = append(read, guard.LayerStatus{ID: layer.ID{Name: string("ab"[i/2]), Family: imds.Families[i%2]}, Reading: r})
		}
		check := Check{Interfaces: c.links, status: guard.Judge(read, guard.Evidence{})}
		if got := check.Verdict(); !errors.Is(got, c.want) {
			t.Errorf("%+v, %+v: %v, want %v", c.readings, c.links, got, c.want)
		}
	}
}

// Each interface counts once, by what covers it.
func TestCoverage(t *testing.T) {
	in, all := layer.Reading{State: layer.Enforced}, layer.Reading{State: layer.Enforced, AnyInterface: true}
	out, none := layer.Reading{State: layer.Missing}, layer.Reading{State: layer.Unsupported}
	noPath := layer.Reading{State: layer.Unsupported, NoPath: true}
	for _, c := range []struct {
		readings          []layer.Reading // iptables ipv4, iptables ipv6, route ipv4, route ipv6
		rule, route, none int             // of 5 interfaces, 2 of which no --interface names
	}{
		{[]layer.Reading{in, in, all, all}, 3, 2, 0},
		{[]layer.Reading{in, out, all, all}, 0, 5, 0},
		{[]layer.Reading{none, none, all, all}, 0, 5, 0},
		{[]layer.Reading{in, noPath, all, all}, 3, 2, 0},
		{[]layer.Reading{in, in, all, out}, 3, 0, 2},
		{[]layer.Reading{out, in, all, out}, 3, 0, 2},
		{[]layer.Reading{out, in, out, all}, 0, 0, 5},
		{[]layer.Reading{in, in}, 3, 0, 2},
		{[]layer.Reading{in, out}, 0, 0, 5},
	} {
		var read []guard.LayerStatus
		for i, r := range c.readings {
			id := layer.ID{Name: []string{rules.LayerName, route.LayerName}[i/2], Family: imds.Families[i%2]}
			read = append(read, guard.LayerStatus{ID: id, Reading: r})
		}
		if byRule, byRoute, byNone := coverage(guard.Judge(read, guard.Evidence{}), 5, 2); byRule != c.rule || byRoute != c.route || byNone != c.none {
			t.Errorf("%+v: %d by a rule, %d by the route, %d by nothing", c.readings, byRule, byRoute, byNone)
		}
	}
}

// A node without pods does not prove that pods are covered, and the text says so.
func TestCheckOfNoPods(t *testing.T) {
	if text := (Check{}).String(); !strings.Contains(text, "no pod interface was found") {
		t.Errorf("it says\n%s", text)
	}
	if text := (Check{Interfaces: CheckLinks{PodSide: 1}}).String(); strings.Contains(text, "no pod interface was found") {
		t.Errorf("with a pod it says\n%s", text)
	}
}

// A look's result carries the same layer name and family in the log, the metrics and the condition.
func TestLayersOfOneFamily(t *testing.T) {
	layers := []metrics.Layer{
		{ID: layer.ID{Name: "a", Family: imds.IPv4}, States: layer.States()},
		{ID: layer.ID{Name: "b", Family: imds.IPv4}, States: rules.States},
	}
	m := metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, layers, nil)
	m.Status = func() guard.Status {
		return guard.Status{Layers: []guard.LayerStatus{
			{ID: layers[0].ID, Reading: layer.Reading{State: layer.Enforced}},
			{ID: layers[1].ID, Reading: layer.Reading{State: rules.Shadowed}},
		}}
	}
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]int{}
	for _, f := range families {
		series[f.GetName()] = len(f.GetMetric())
	}
	if n := series["imds_guard_rule_state"]; n != len(layer.States())+len(rules.States) {
		t.Errorf("%d series of states", n)
	}
	if n := series["imds_guard_contended"]; n != 2 {
		t.Errorf("%d series of contended", n)
	}
}

// Only errors of commands are counted as such.
func TestOnlyCommandsAreCounted(t *testing.T) {
	id := layer.ID{Name: rules.LayerName, Family: imds.IPv4}
	m := metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, []metrics.Layer{{ID: id, States: rules.States}}, nil)
	m.Status = func() guard.Status { return guard.Status{} }
	counted := func() (sum float64) {
		families, err := m.Registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, s := range f.GetMetric() {
				if f.GetName() == "imds_guard_iptables_errors_total" {
					sum += s.GetCounter().GetValue()
				}
			}
		}
		return sum
	}
	m.Failed(id, errors.New("inserted rules are not recognised"))
	if n := counted(); n != 0 {
		t.Errorf("%v errors of commands", n)
	}
	m.Failed(id, &rules.CommandError{Family: imds.IPv4, Operation: rules.OpList, Reason: rules.ReasonLock, Err: errors.New("lock")})
	if n := counted(); n != 1 {
		t.Errorf("%v errors of commands after one", n)
	}
}

// The policy of a configuration is what its flags say.
func TestPolicyOfConfig(t *testing.T) {
	p, err := ifpattern.Parse("eni+")
	if err != nil {
		t.Fatal(err)
	}
	c := config.Config{Interfaces: []ifpattern.Pattern{p}, Verdict: policy.Reject}
	if got := c.Policy().String(); got != "eni+ reject" {
		t.Errorf("%q", got)
	}
}

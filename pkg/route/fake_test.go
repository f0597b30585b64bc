package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// fakeKernel fails on demand, and notes what is done to it.
type fakeKernel struct {
	there   []piece
	failing map[string]error // by what is asked or done, e.g. "rules" or "make the sink"
	done    []string
}

func (k *fakeKernel) Rules() ([]rule, error) {
	rules := []rule{{text: "0: lookup 255"}}
	if slices.Contains(k.there, policyRule) {
		rules = append(rules, rule{ours: true})
	}
	return rules, k.failing["rules"]
}

func (k *fakeKernel) Routes(of uint32, _ byte) (routes []routeEntry, err error) {
	if of != table {
		return nil, k.failing["local"]
	}
	r := routeEntry{table: table, to: imds.IPv4.Endpoint(), plain: true}
	if slices.Contains(k.there, sinkRoute) {
		r.kind, r.metric, r.link = unix.RTN_UNICAST, sinkMetric, 7
		routes = append(routes, r)
	}
	if slices.Contains(k.there, blackhole) {
		r.kind, r.metric, r.link = unix.RTN_BLACKHOLE, blackholeMetric, 0
		routes = append(routes, r)
	}
	return routes, k.failing["routes"]
}

func (k *fakeKernel) Sink() (link, error) {
	if slices.Contains(k.there, sink) {
		return link{index: 7}, k.failing["sink"]
	}
	return link{}, k.failing["sink"]
}

func (k *fakeKernel) do(what string, p piece) error {
	k.done = append(k.done, what+" "+string(p))
	return k.failing[what+" "+string(p)]
}

func (k *fakeKernel) Make(p piece, index int) error {
	if p == sinkRoute && index != 7 {
		return fmt.Errorf("a route into the link %d", index)
	}
	if err := k.do("make", p); err != nil {
		return err
	}
	k.there = append(k.there, p)
	return nil
}

func (k *fakeKernel) delete(p piece) error {
	k.there = slices.DeleteFunc(k.there, func(have piece) bool { return have == p })
	return k.do("delete", p)
}

func (k *fakeKernel) DeleteRule(rule) error    { return k.delete(policyRule) }
func (k *fakeKernel) DeleteSink() (int, error) { return 0, k.delete(sink) }
func (k *fakeKernel) DeleteRoute(r routeEntry) error {
	if r.kind == unix.RTN_BLACKHOLE {
		return k.delete(blackhole)
	}
	return k.delete(sinkRoute)
}

func lookAt(k *fakeKernel) (*Layer, layer.Finding) {
	l := &Layer{family: imds.IPv4, kernel: k}
	return l, l.Look(policy.Policy{}, func(string) {})
}

// If anything can't be read, the state is unknown, whatever else was read; a kernel that lacks the feature makes it
// unsupported.
func TestUnreadable(t *testing.T) {
	for _, what := range []string{"rules", "routes", "local", "sink"} {
		for err, want := range map[error]layer.State{
			unix.EIO: layer.Unknown, unix.EBUSY: layer.Unknown,
			unix.EAFNOSUPPORT: layer.Unsupported, fmt.Errorf("asking: %w", unix.EOPNOTSUPP): layer.Unsupported,
		} {
			_, f := lookAt(&fakeKernel{there: pieces, failing: map[string]error{what: err}})
			if f.State != want || f.NoPath || (f.Err != nil) != (want == layer.Unknown) || f.Detail == "" {
				t.Errorf("reading the %s ends with %v: %s, %q, %v", what, err, f.State, f.Detail, f.Err)
			}
		}
	}
}

// What stops packets goes in first, and one piece that fails keeps no other from going in.
func TestOrderOfRepair(t *testing.T) {
	k := &fakeKernel{}
	l, f := lookAt(k)
	if err := l.Repair(policy.Policy{}, f); err != nil {
		t.Error(err)
	}
	want := []string{"make the blackhole route", "make the policy rule", "delete the sink", "make the sink", "make the route into the sink"}
	if !slices.Equal(k.done, want) {
		t.Errorf("done: %q, want %q", k.done, want)
	}
	if f := l.Look(policy.Policy{}, func(string) {}); f.State != layer.Enforced {
		t.Errorf("after the repair: %s, %s", f.State, f.Detail)
	}
	for _, p := range pieces {
		broken := errors.New("broken")
		k := &fakeKernel{failing: map[string]error{"make " + string(p): broken}}
		l, f := lookAt(k)
		err := l.Repair(policy.Policy{}, f)
		if !errors.Is(err, broken) {
			t.Errorf("%s fails: %v", p, err)
		}
		for _, other := range pieces {
			made := slices.Contains(k.there, other)
			if made != (other != p && (p != sink || other != sinkRoute)) {
				t.Errorf("%s fails: %s is made: %t", p, other, made)
			}
		}
		if f := l.Look(policy.Policy{}, func(string) {}); f.State != layer.Missing || !strings.Contains(f.Detail, string(p)) {
			t.Errorf("%s has failed: %s, %s", p, f.State, f.Detail)
		}
	}
}

// The fake's pieces are removed, the policy rule first; failures to remove one are reported.
func TestOrderOfCleanup(t *testing.T) {
	k := &fakeKernel{there: slices.Clone(pieces)}
	removed, err := clean(&Layer{family: imds.IPv4, kernel: k})
	if err != nil || len(removed) != len(pieces) || len(k.there) != 0 || k.done[0] != "delete the policy rule" {
		t.Errorf("removed %q, %v; left %q; done %q", removed, err, k.there, k.done)
	}
	k = &fakeKernel{there: slices.Clone(pieces), failing: map[string]error{"delete the sink": unix.EBUSY}}
	if _, err := clean(&Layer{family: imds.IPv4, kernel: k}); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a failure ends with %v", err)
	}
}

// A finding of another layer is an error and no panic.
func TestForeignFinding(t *testing.T) {
	l, _ := lookAt(&fakeKernel{})
	if err := l.Repair(policy.Policy{}, layer.Finding{Plan: 7}); err == nil {
		t.Error("it is taken")
	}
}

// What is no message of the kernel's is an error and no panic.
func FuzzMessages(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0})
	f.Add([]byte{10, 200, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 6, 0, 1, 0, 1, 2})
	f.Add([]byte{2, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 5, 0, 14, 0, 1})
	f.Fuzz(func(t *testing.T, message []byte) {
		if r, err := parseRule(imds.IPv4, message); err == nil && r.ours && len(message) < unix.SizeofRtMsg {
			t.Error("a rule of ours out of nothing")
		}
		if r, err := parseRoute(message); err == nil && r.plain && r.to.Bits() > 128 {
			t.Errorf("a route to %s", r.to)
		}
		_ = linkOf(message, map[int32]imds.Family{})
	})
}

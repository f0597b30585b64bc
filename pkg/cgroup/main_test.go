package cgroup

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

func TestMain(m *testing.M) {
	if testnode.RunSocketCalls() {
		return
	}
	os.Exit(m.Run())
}

// world is a node whose pods are below a cgroup of their own, and which has its own bpffs.
type world struct {
	*testnode.Node
	t      *testing.T
	pod    *testnode.Pod
	pods   string // the cgroup
	layers map[imds.Family]*Layer
	policy policy.Policy
}

func newWorld(t *testing.T) *world {
	t.Helper()
	n := testnode.Make(t)
	w := &world{Node: n, t: t, layers: map[imds.Family]*Layer{}}
	t.Cleanup(w.letGo)
	var err error
	if w.pod, err = n.AddPod("eni0123456789a"); err != nil {
		t.Fatal(err)
	}
	if w.pods, err = n.PodsCgroup(); err != nil {
		t.Fatal(err)
	}
	for _, f := range imds.Families {
		w.layers[f] = New(f, w.pods)
	}
	return w
}

// letGo is what the end of the agent does: nobody holds a link any more.
func (w *world) letGo() {
	for f, l := range w.layers {
		for _, held := range l.held {
			held.Close()
		}
		w.layers[f] = New(f, w.pods)
	}
}

func (w *world) sh(format string, args ...any) string {
	w.t.Helper()
	out, err := w.Command(context.Background(), "sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%q: %v\n%s", fmt.Sprintf(format, args...), err, out)
	}
	return string(out)
}

func (w *world) try(in *testnode.Namespace, calls ...string) []string {
	w.t.Helper()
	results, err := w.SocketCalls(in, calls...)
	if err != nil {
		w.t.Fatal(err)
	}
	return results
}

func (w *world) tryAs(by testnode.Caller, calls ...string) []string {
	w.t.Helper()
	results, err := w.SocketCallsAs(by, w.pod.Namespace, calls...)
	if err != nil {
		w.t.Fatal(err)
	}
	return results
}

// mustAll tries every spelling of the endpoint of a family.
func (w *world) mustAll(in *testnode.Namespace, f imds.Family, want, when string) {
	w.t.Helper()
	for i, got := range w.try(in, spellings[f]...) {
		if got != want {
			w.t.Errorf("%s: %s: %s, want %s", when, spellings[f][i], got, want)
		}
	}
}

func (w *world) look(f imds.Family) (found layer.Finding) {
	w.t.Helper()
	if err := w.Host().Do(func() error { found = w.layers[f].Look(w.policy, nil); return nil }); err != nil {
		w.t.Fatal(err)
	}
	return found
}

func (w *world) repair(f imds.Family) {
	w.t.Helper()
	if err := w.Host().Do(func() error {
		l := w.layers[f]
		return l.Repair(w.policy, l.Look(w.policy, nil))
	}); err != nil {
		w.t.Fatalf("%s: repairing: %v", f, err)
	}
}

func (w *world) must(f imds.Family, s layer.State, detail string) layer.Finding {
	w.t.Helper()
	found := w.look(f)
	if found.State != s || !strings.Contains(found.Detail, detail) {
		w.t.Errorf("%s: it is %s, %q; want %s, %q", f, found.State, found.Detail, s, detail)
	}
	return found
}

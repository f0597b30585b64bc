package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// calls makes all of a family's socket calls from the node's network, in a pod's cgroup.
func (w *world) calls(cgroup string, f imds.Family, want, when string) {
	w.t.Helper()
	results, err := w.SocketCallsBy(cgroup, w.Host(), spellings[f]...)
	if err != nil {
		w.t.Fatal(err)
	}
	if slices.ContainsFunc(results, func(got string) bool { return got != want }) {
		w.t.Errorf("%s: %s in %s: %q, want %s", when, f, cgroup, results, want)
	}
}

// host changes the policy for hostNetwork pods, and puts it in force.
func (w *world) host(h policy.HostNetwork) {
	w.t.Helper()
	w.policy = policy.Policy{}.WithHostNetwork(h)
	for _, f := range imds.Families {
		w.repair(f)
		w.must(f, layer.Enforced, "")
	}
}

// id returns the id of a cgroup below the pods'.
func (w *world) id(cgroup string) uint64 {
	w.t.Helper()
	at, err := os.Open(filepath.Join(w.pods, cgroup))
	if err != nil {
		w.t.Fatal(err)
	}
	defer at.Close()
	id, err := idOf(at)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func (w *world) allow(ids ...uint64) {
	w.t.Helper()
	if err := w.Host().Do(func() error { return AllowHosts(ids) }); err != nil {
		w.t.Fatal(err)
	}
}

// counted returns the kernel's counts, by asker.
func (w *world) counted() map[Asker]Count {
	w.t.Helper()
	var counts []Count
	if err := w.Host().Do(func() (err error) { counts, _, err = Counts(); return err }); err != nil {
		w.t.Fatal(err)
	}
	by := map[Asker]Count{}
	for _, c := range counts {
		by[c.Asker] = c
	}
	return by
}

// With block, a hostNetwork pod is refused unless it is let through, on whatever level its cgroup is; but none is refused until
// the list of those let through has been written. With audit it is served, and counted. Pods with their own network are always
// refused, and processes below no pod's cgroup never.
func TestHostNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const one, other, guaranteed = "burstable/pod1/container", "burstable/pod2/container", "pod3"
	for _, cgroup := range []string{one, other, guaranteed} {
		w.calls(cgroup, imds.IPv4, "sent", "without a guard") // and makes the cgroups
	}
	w.host(policy.Block)
	w.must(imds.IPv4, layer.Enforced, "it is not known yet which of them should be")
	for _, f := range imds.Families {
		w.calls(one, f, "sent", "before anybody has said who is let through")
		w.mustAll(w.pod.Namespace, f, "EPERM", "a pod in its own network")
	}
	listed := func(want bool) {
		t.Helper()
		var got bool
		if err := w.Host().Do(func() (err error) { got, err = HostsListed(); return err }); err != nil || got != want {
			t.Errorf("listed: %t (%v), want %t", got, err, want)
		}
	}
	listed(false)
	w.allow(w.id("burstable/pod2"), w.id(guaranteed))
	listed(true)
	if found := w.must(imds.IPv4, layer.Enforced, ""); found.Detail != "" {
		t.Errorf("it is said that %s", found.Detail)
	}
	w.allow(w.id("burstable/pod2"), w.id(guaranteed))
	before := w.look(imds.IPv6).Blocked
	for _, f := range imds.Families {
		w.calls(one, f, "EPERM", "not let through")
		w.calls(other, f, "sent", "let through")
		w.calls(guaranteed, f, "sent", "let through, at another level")
	}
	calls := uint64(len(spellings[imds.IPv6]))
	if counted := w.look(imds.IPv6).Blocked - before; counted != calls {
		t.Errorf("%d calls were counted", counted)
	}
	calls += uint64(len(spellings[imds.IPv4]))
	if counted := w.counted()[Asker{w.id("burstable"), w.id("burstable/pod1"), Blocked}].Attempts; counted != calls {
		t.Errorf("%d calls of it were counted, want %d", counted, calls)
	}
	if counted := w.counted()[Asker{w.id("burstable"), w.id("burstable/pod2"), Blocked}].Attempts; counted != 0 {
		t.Errorf("%d calls were counted of one that is let through", counted)
	}
	w.allow()
	w.calls(other, imds.IPv4, "EPERM", "let through no more")
	w.letGo()
	w.calls(one, imds.IPv4, "EPERM", "after the agent's end")

	w.host(policy.Audit)
	w.calls(one, imds.IPv4, "sent", "with audit")
	if counted := w.counted()[Asker{w.id("burstable"), w.id("burstable/pod1"), Audited}].Attempts; counted != uint64(len(spellings[imds.IPv4]))+1 { // see TestAuditOnly
		t.Errorf("with audit %d calls were counted", counted)
	}
	w.host(policy.Block)
	w.calls(one, imds.IPv4, "EPERM", "blocked again")
	w.host(policy.Allow)
	w.calls(one, imds.IPv4, "sent", "with allow")
	if err := w.Host().Do(ForgetHosts); err != nil {
		t.Fatal(err)
	}
	w.host(policy.Block)
	w.calls(one, imds.IPv4, "sent", "after it was forgotten who is let through")
}

// The loss of a map is found, and the list starts anew.
func TestHostMapsLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.Host().Do(func() error { return AllowHosts(nil) }); err != ErrNoMaps {
		t.Errorf("without the layer: %v", err)
	}
	w.host(policy.Block)
	w.allow()
	w.calls("pod1", imds.IPv4, "EPERM", "with the list")
	for _, loss := range []struct{ how, detail string }{
		{"rm " + allowedPin(), "the list of hostNetwork pods is not pinned"},
		{"rm " + attemptsPin(), "the map of attempts is not pinned"},
		{"rm " + newsPin(), "the ring buffer of attempts is not pinned"},
		{"mv " + counterOf(imds.IPv6) + " " + allowedPin(), "the list of hostNetwork pods is a different map"},
	} {
		w.sh("%s", loss.how)
		w.must(imds.IPv4, layer.Missing, loss.detail)
		w.calls("pod1", imds.IPv4, "EPERM", "by the program, which has the map yet, after "+loss.how)
		for _, f := range imds.Families {
			w.repair(f)
			w.must(f, layer.Enforced, "")
		}
		w.allow()
		w.calls("pod1", imds.IPv4, "EPERM", "with the list again")
		w.calls("pod1", imds.IPv6, "EPERM", "with the list again")
	}
	if left := w.sh("ls %s", pins()); !strings.Contains(left, "host-allowed") {
		t.Errorf("pinned: %s", left)
	}
	for _, f := range imds.Families {
		if err := w.Host().Do(func() error { _, err := Cleanup(f); return err }); err != nil {
			t.Fatal(err)
		}
	}
	if left := w.sh("ls /sys/fs/bpf"); strings.Contains(left, "imds-guard") {
		t.Errorf("left behind: %s", left)
	}
}

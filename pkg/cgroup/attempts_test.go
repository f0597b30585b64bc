package cgroup

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// gather collects attempts, or beginnings of requests, until the test ends.
func gather(w *world, run func(context.Context, func(string)) error) (got func() []string) {
	var mu sync.Mutex
	var all []string
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- w.Host().Do(func() error {
			return run(ctx, func(s string) {
				mu.Lock()
				defer mu.Unlock()
				all = append(all, s)
			})
		})
	}()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != context.Canceled {
			w.t.Errorf("following ends with %v", err)
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

// Every attempt is counted by cgroup; the first of each cgroup within a second is sent as an event at once, with the process's
// name; a flood from one hides no other. The count outlives the agent.
func TestAttempts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, f := range imds.Families {
		w.repair(f)
	}
	told := gather(w, func(ctx context.Context, add func(string)) error {
		return FollowAttempts(ctx, func(a Attempt) { add(fmt.Sprint(a.Top, " ", a.Second, " ", a.Verdict, " ", a.Command)) })
	})
	began := time.Now()
	const one, other = "burstable/pod1/container/deep/down", "pod2/container"
	if _, err := w.SocketCallsBy(one, w.pod.Namespace, "timed-connect 169.254.169.254:80"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.SocketCallsBy(other, w.pod.Namespace, "tcp [fd00:ec2::254]:80"); err != nil {
		t.Fatal(err)
	}
	name := filepath.Base(os.Args[0])
	name = name[:min(len(name), 15)]
	eventually(t, "both are told of", func() bool {
		return slices.Contains(told(), fmt.Sprint(w.id("burstable"), " ", w.id("burstable/pod1"), " 1 ", name)) &&
			slices.Contains(told(), fmt.Sprint(w.id("pod2"), " ", w.id(other), " 1 ", name))
	})
	if most := int(time.Since(began)/time.Second) + 3; len(told()) > most {
		t.Errorf("%d calls were told %d times, more than %d", testnode.TimedCalls+1, len(told()), most)
	}
	w.letGo()
	for _, f := range imds.Families {
		w.must(f, layer.Enforced, "")
	}
	for by, calls := range map[Asker]uint64{
		{w.id("burstable"), w.id("burstable/pod1"), Blocked}: testnode.TimedCalls, {w.id("pod2"), w.id(other), Blocked}: 1,
	} {
		c := w.counted()[by]
		if c.Attempts != calls || c.Last.Before(began.Add(-time.Second)) || c.Last.After(time.Now().Add(time.Second)) {
			t.Errorf("counted: %+v, want %d", c, calls)
		}
	}
}

// In audit mode nothing is refused and everything is counted. Switching from enforce to audit and back leaves nothing of the
// other mode.
func TestAuditOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	enforce, audit := w.policy, w.policy.WithMode(policy.AuditOnly)
	put := func(p policy.Policy, s layer.State, calls string) {
		t.Helper()
		w.policy = p
		for _, f := range imds.Families {
			w.repair(f)
			found := w.must(f, s, "")
			if len(found.Rules) != len(hooksOf(f, p.AuditOnly())) {
				t.Errorf("%s: read back: %q", f, found.Rules)
			}
			w.mustAll(w.pod.Namespace, f, calls, s.String())
		}
		for _, of := range []string{"egress", "requests"} {
			if left := strings.Contains(w.sh("ls /sys/fs/bpf/imds-guard"), of); left != p.AuditOnly() {
				t.Errorf("%s: that %s is pinned is %t", s, of, left)
			}
		}
	}
	put(audit, layer.Auditing, "sent")
	calls := uint64(len(spellings[imds.IPv4]) + len(spellings[imds.IPv6]))
	// A UDP socket that is connected to the mapped address, and not refused by one hook, is asked of by IPv4's, too.
	if c := w.counted()[Asker{w.id("pod1"), w.id("pod1/container"), Audited}]; c.Attempts != calls+1 {
		t.Errorf("counted: %+v, want %d", c, calls+1)
	}
	if blocked := w.look(imds.IPv4).Blocked; blocked != 0 {
		t.Errorf("%d calls were refused", blocked)
	}
	put(enforce, layer.Enforced, "EPERM")
	if c := w.counted()[Asker{w.id("pod1"), w.id("pod1/container"), Blocked}]; c.Attempts != calls {
		t.Errorf("counted: %+v, want %d", c, calls)
	}
	put(audit, layer.Auditing, "sent")
	w.letGo()
	w.sh("rm %s %s", pinOf(imds.IPv4, hooksOf(imds.IPv4, true)[3], "link"), pinOf(imds.IPv6, hooksOf(imds.IPv6, true)[2], "link"))
	put(enforce, layer.Enforced, "EPERM")

	// One family's hooks go without the other's.
	put(audit, layer.Auditing, "sent")
	if err := w.Host().Do(func() error { _, err := RemoveHooks(imds.IPv4); return err }); err != nil {
		t.Fatal(err)
	}
	w.must(imds.IPv4, layer.Missing, "")
	w.must(imds.IPv6, layer.Auditing, "")
}

// newAudited is a world in audit mode.
func newAudited(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.policy = w.policy.WithMode(policy.AuditOnly)
	for _, f := range imds.Families {
		w.repair(f)
	}
	return w
}

// In audit mode the beginnings of requests are shown, of both families; answers and other requests never are.
func TestRequests(t *testing.T) {
	t.Parallel()
	w := newAudited(t)
	shown := gather(w, func(ctx context.Context, add func(string)) error {
		return FollowRequests(ctx, func(by Asker, beginning []byte) { add(fmt.Sprint(by.Second, " ", string(beginning))) })
	})
	long := strings.Repeat("x", 3000)
	got := w.try(w.pod.Namespace, "get probe/1@http://169.254.169.254/latest/meta-data/instance-id", "get http://[fd00:ec2::254]/latest/meta-data/instance-id?"+long)
	if slices.ContainsFunc(got, isNot("200")) {
		t.Fatalf("the requests end with %q", got)
	}
	id := w.id("pod1/container")
	want := []string{
		fmt.Sprint(id, " GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: probe/1\r\nConnection: close\r\n\r\n"),
		fmt.Sprint(id, " ", ("GET /latest/meta-data/instance-id?" + long)[:mostShown]),
	}
	eventually(t, "both are shown", func() bool { return len(shown()) >= 2 })
	if got := shown(); !slices.Equal(got, want) {
		t.Errorf("shown: %q", got)
	}
}

// An SDK asks for a token and for what it wants within a millisecond. All of that is shown, and after that at most one request
// a millisecond.
func TestRequestsInARow(t *testing.T) {
	t.Parallel()
	w := newAudited(t)
	shown := gather(w, func(ctx context.Context, add func(string)) error {
		return FollowRequests(ctx, func(_ Asker, beginning []byte) {
			line, _, _ := strings.Cut(string(beginning), "\r\n")
			add(line)
		})
	})
	var calls, want []string
	for i := range requestsMost {
		path := fmt.Sprint("/latest/meta-data/instance-id?", i)
		calls, want = append(calls, "get http://169.254.169.254"+path), append(want, "GET "+path+" HTTP/1.1")
	}
	if got := w.try(w.pod.Namespace, calls...); slices.ContainsFunc(got, isNot("200")) {
		t.Fatalf("the requests end with %q", got)
	}
	eventually(t, "all are shown", func() bool { return slices.Equal(shown(), want) })

	began := time.Now()
	if got := w.try(w.pod.Namespace, slices.Repeat(calls, 50)...); slices.ContainsFunc(got, isNot("200")) {
		t.Fatalf("one of the requests ends with %q", slices.Compact(got))
	}
	eventually(t, "some of many are shown", func() bool { return len(shown()) >= 2*requestsMost })
	if most := int(time.Since(began)/time.Millisecond) + 3*requestsMost; len(shown()) > most {
		t.Errorf("%d requests were shown, more than %d", len(shown()), most)
	}
}

// A pod that is let through in any mode, such as a hostNetwork pod, is not counted in audit mode, nor are its requests shown. A
// recreated counter is told from the one before, whatever its value.
func TestNotCounted(t *testing.T) {
	t.Parallel()
	w := newAudited(t)
	shown := gather(w, func(ctx context.Context, add func(string)) error {
		return FollowRequests(ctx, func(by Asker, _ []byte) { add(fmt.Sprint(by.Second)) })
	})
	const url = "get http://169.254.169.254/latest/meta-data/instance-id"
	for _, in := range []*testnode.Namespace{w.Host(), w.pod.Namespace} { // the second is shown, so the first would have been by then
		cgroup := "pod1/container"
		if in == w.Host() {
			cgroup = "pod2/container"
		}
		if got, err := w.SocketCallsBy(cgroup, in, url); err != nil || got[0] != "200" {
			t.Fatalf("%s: %q, %v", cgroup, got, err)
		}
	}
	eventually(t, "one is shown", func() bool { return len(shown()) > 0 })
	if got := shown(); !slices.Equal(got, []string{fmt.Sprint(w.id("pod1/container"))}) {
		t.Errorf("shown: %q", got)
	}
	by := Asker{w.id("pod1"), w.id("pod1/container"), Audited}
	before := w.counted()
	if len(before) != 1 || before[by].Attempts != 1 {
		t.Errorf("counted: %+v", before)
	}
	w.sh("rm %s", attemptsPin())
	w.repair(imds.IPv4)
	w.try(w.pod.Namespace, "tcp 169.254.169.254:80")
	if after := w.counted()[by]; after.Attempts != 1 || after.Began == before[by].Began {
		t.Errorf("counted anew: %+v, and before %+v", after, before[by])
	}
}

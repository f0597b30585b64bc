package ifwatch

import (
	"context"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

type counts struct{ added, removed, resyncs chan int }

func (c counts) Added(n int)   { c.added <- n }
func (c counts) Removed(n int) { c.removed <- n }
func (c counts) Resynced()     { c.resyncs <- 1 }

// watched is a Watch that runs on a node until the test ends.
type watched struct {
	*Watch
	woken chan struct{}
}

// watch runs one in fn's hands.
func watch(t *testing.T, n *testnode.Node, lost func(error), run func(func())) watched {
	t.Helper()
	c := counts{make(chan int, 1000), make(chan int, 1000), make(chan int, 1000)}
	w := watched{woken: make(chan struct{}, 1000)}
	w.Watch = &Watch{Resync: time.Hour, Recorder: c, Wake: func() { w.woken <- struct{}{} }, Lost: lost}
	if got := w.Picture().Err; got != ErrNotListed {
		t.Errorf("the first picture's error is %v", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- n.Host().Do(func() error {
			run(func() { w.Run(ctx) })
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return w
}

// until waits for a picture. Nothing but a wake makes it look again.
func (w watched) until(t *testing.T, what string, is func(Picture) bool) {
	t.Helper()
	for {
		select {
		case <-w.woken:
			if is(w.Picture()) {
				return
			}
		case <-time.After(time.Minute):
			t.Fatalf("waiting until %s: the picture stays %+v", what, w.Picture())
		}
	}
}

func hasPod(name string) func(Picture) bool {
	return func(p Picture) bool { return slices.Equal(sorted(p.Interfaces), []string{name}) }
}

// The watch lists at once, wakes for a new interface and a new tunnel, and ends with its context.
func TestWatch(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	w := watch(t, n, func(err error) { t.Errorf("lost: %v", err) }, func(run func()) { run() })
	w.until(t, "the node is listed", func(p Picture) bool { return p.Err == nil && len(p.Interfaces)+len(p.Tunnels) == 0 })
	if _, err := n.AddPod("eni0123456789a"); err != nil {
		t.Fatal(err)
	}
	w.until(t, "the pod is seen", hasPod("eni0123456789a"))
	sh(t, n, "ip link add flannel.1 type vxlan id 1 dstport 8472; ip link set flannel.1 up")
	w.until(t, "the tunnel is seen", func(p Picture) bool { return len(p.Tunnels) == 1 })
	sh(t, n, "ip link set flannel.1 down")
	w.until(t, "the tunnel is gone", func(p Picture) bool { return len(p.Tunnels) == 0 })
}

// Without CAP_NET_ADMIN no subscription gets its buffer. The interfaces are listed all the same, again and again.
func TestWatchWithoutASubscription(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	lost := make(chan error, 1000)
	w := watch(t, n, func(err error) { lost <- err }, func(run func()) {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer setNetAdmin(t, setNetAdmin(t, false))
		run()
	})
	w.until(t, "the node is listed", func(p Picture) bool { return p.Err == nil })
	if err := <-lost; err == nil {
		t.Error("lost(nil)")
	}
	if _, err := n.AddPod("eni0123456789a"); err != nil {
		t.Fatal(err)
	}
	w.until(t, "the pod is seen", hasPod("eni0123456789a"))
}

// setNetAdmin gives the thread's CAP_NET_ADMIN effect, or takes it, and returns whether it had effect.
func setNetAdmin(t *testing.T, on bool) (was bool) {
	const bit = 1 << unix.CAP_NET_ADMIN
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		t.Errorf("reading capabilities: %v", err)
	}
	was = sets[0].Effective&bit != 0
	sets[0].Effective &^= bit
	if on {
		sets[0].Effective |= bit
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		t.Errorf("setting capabilities: %v", err)
	}
	return was
}

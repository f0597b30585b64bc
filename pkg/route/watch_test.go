package route

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// wakes counts wakes by family; the empty one stands for all.
type wakes struct {
	mu sync.Mutex
	n  map[imds.Family]int
}

func (w *wakes) add(changed ...imds.Family) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(changed) == 0 {
		w.n[""]++
	}
	for _, f := range changed {
		w.n[f]++
	}
}

func (w *wakes) take(f imds.Family) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, w.n[f] = w.n[f], 0
	return n
}

// awaitWake waits until there was one.
func awaitWake(t *testing.T, w *wakes, f imds.Family, after string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); w.take(f) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nobody is woken for %q after %s", f, after)
		}
	}
}

func otherThan(f imds.Family) imds.Family {
	return map[imds.Family]imds.Family{imds.IPv4: imds.IPv6, imds.IPv6: imds.IPv4}[f]
}

// Existing sinks are known by their index, so renaming one does not hide it.
func TestSinksAreNoted(t *testing.T) {
	k := keep(t)
	links := map[int32]imds.Family{}
	note := func() error { noteSinks(links); return nil }
	if err := k.Host().Do(note); err != nil || len(links) != 0 {
		t.Errorf("without any: %v, %v", links, err)
	}
	k.repairAll()
	if err := k.Host().Do(note); err != nil {
		t.Fatal(err)
	}
	for _, f := range imds.Families {
		var index int32
		if _, err := fmt.Sscan(k.sh("ip -o link show %s | cut -d: -f1", namesOf(f).sink), &index); err != nil {
			t.Fatal(err)
		}
		if links[index] != f {
			t.Errorf("%s: link %d is not in %v", f, index, links)
		}
	}
}

// Each loss of a piece wakes the keeper of its family, also of a link that has got another name; what others do with their
// links and routes wakes nobody.
func TestWatch(t *testing.T) {
	k := keep(t)
	k.repairAll()
	w := &wakes{n: map[imds.Family]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- k.Host().Do(func() error {
			(&Watch{Wake: w.add, Lost: func(err error) { t.Error(err) }}).Run(ctx)
			return nil
		})
	}()
	awaitWake(t, w, "", "the start")
	k.sh("for i in $(seq 50); do ip route add 10.9.$i.0/24 dev eth0; ip -6 route add 2001:db8:9:$i::/64 dev eth0; " +
		"ip link add d$i type bridge; ip addr add 10.8.$i.1/32 dev d$i; ip link set d$i up; ip link del d$i; done")
	// Notifications come in order: after the next wake nothing of that is under way.
	for _, f := range imds.Families {
		other := otherThan(f)
		k.sh("ip -%s rule add pref 7 lookup main", version(f))
		awaitWake(t, w, f, "a rule")
		if n := w.take(other); n > 1 {
			t.Errorf("others' links and routes, and a rule of %s, have woken the keeper of %s %d times", f, other, n)
		}
	}
	// settled makes sure that what was done to a family until now has had its wakes: notifications come in order.
	settled := func(f imds.Family) {
		other := otherThan(f)
		w.take(other)
		k.sh("ip -%[1]s rule add pref 8 lookup main; ip -%[1]s rule del pref 8", version(other))
		awaitWake(t, w, other, "a marker")
		w.take(f)
	}
	for _, f := range imds.Families {
		for _, loss := range losses[:9] {
			k.repair(f)
			settled(f)
			command := fmt.Sprintf(loss.how, version(f), namesOf(f).sink)
			k.sh("%s", command)
			awaitWake(t, w, f, command)
			k.sh("ip link del lost 2>/dev/null; ip link del bridge0 2>/dev/null; true")
		}
		// A name is no hiding place.
		k.repair(f)
		k.sh("ip link set %[1]s down; ip link set %[1]s name hidden", namesOf(f).sink)
		awaitWake(t, w, f, "another name")
		settled(f)
		k.sh("ip link set hidden up")
		awaitWake(t, w, f, "the link under that name is up")
		k.sh("ip link del hidden")
	}
	// What has no notification of its own. (That IPv6 is switched on again for a link without a carrier has none at all; the
	// blackhole is there until the resync.)
	k.repairAll()
	for _, c := range []struct {
		how string
		f   imds.Family
	}{
		{"echo 1 > /proc/sys/net/ipv6/conf/imds-guard6/disable_ipv6", imds.IPv6},
		{"echo 1 > /proc/sys/net/ipv6/route/skip_notify_on_dev_down; ip link set lo down; ip link set lo up", imds.IPv6},
		{"ip link set lo down; ip link set lo name lo0", imds.IPv4},
	} {
		settled(c.f)
		k.sh("%s", c.how)
		awaitWake(t, w, c.f, c.how)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

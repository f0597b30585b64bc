package guard

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// The states that this layer has beside the common ones.
var (
	leaking = layer.NewState("leaking", false)
	untidy  = layer.NewState("untidy", true)
)

// fakeLayer fails in ways that the kernel does not on demand. Each Repair makes the state enforced, unless told otherwise.
type fakeLayer struct {
	id     layer.ID
	hang   chan struct{} // Look does not return before it is closed
	policy policy.Policy // of the last look

	mu      sync.Mutex
	state   layer.State
	place   string
	detail  string
	noPath  bool
	doubts  string // what Look doubts before it hangs
	again   time.Duration
	looks   int
	repairs int
	failing error       // Repair fails
	undo    layer.State // what every repair leaves instead of enforced
	during  func()      // called in the middle of a repair
}

func (l *fakeLayer) ID() layer.ID { return l.id }

func (l *fakeLayer) Look(p policy.Policy, doubt func(string)) layer.Finding {
	l.mu.Lock()
	l.looks++
	l.policy = p
	hang, doubts := l.hang, l.doubts
	l.mu.Unlock()
	if doubts != "" {
		doubt(doubts)
	}
	if hang != nil {
		<-hang
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	f := layer.Finding{Reading: layer.Reading{State: l.state, Place: l.place, Detail: l.detail, NoPath: l.noPath}, Plan: l.looks, Again: l.again}
	if l.state == layer.Unknown {
		f.Err = errors.New("unreadable")
	}
	return f
}

func (l *fakeLayer) Repair(p policy.Policy, f layer.Finding) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.repairs++
	if f.Plan != l.looks || p.String() != l.policy.String() {
		return errors.New("the finding or the policy is not that of the last look")
	}
	if l.during != nil {
		l.during()
	}
	if l.failing != nil {
		return l.failing
	}
	l.state, l.detail = layer.Enforced, ""
	if l.undo != (layer.State{}) {
		l.state = l.undo
	}
	return nil
}

// set changes the layer under its lock.
func (l *fakeLayer) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *fakeLayer) repaired() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.repairs
}

func (l *fakeLayer) looked() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.looks
}

// counts is a Recorder.
type counts struct {
	mu              sync.Mutex
	drift           map[layer.State]int
	success, errors int
	failed, looks   int
	took            time.Duration // of the last repair
}

func (c *counts) add(n *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*n++
}

func (c *counts) Looked(layer.ID) { c.add(&c.looks) }

func (c *counts) Drift(_ layer.ID, s layer.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drift[s]++
}

func (c *counts) Repaired(_ layer.ID, ok bool, took time.Duration) {
	c.took = took
	if ok {
		c.add(&c.success)
	} else {
		c.add(&c.errors)
	}
}

func (c *counts) Failed(layer.ID, error) { c.add(&c.failed) }

const resync = 10 * time.Second

// test is a guard of one fake layer, or more.
type test struct {
	*Guard
	l   *fakeLayer // the first
	rec *counts
	log *bytes.Buffer
}

func newTest(states ...layer.State) test {
	t := test{rec: &counts{drift: map[layer.State]int{}}, log: &bytes.Buffer{}}
	c := Config{Resync: resync, Recorder: t.rec, Log: slog.New(slog.NewTextHandler(t.log, nil)), Policy: policy.New(nil, policy.Drop)}
	for i, s := range states {
		l := &fakeLayer{id: layer.ID{Name: fmt.Sprint("fake", i/2), Family: imds.Families[i%2]}, state: s}
		c.Layers = append(c.Layers, l)
	}
	t.l = c.Layers[0].(*fakeLayer)
	t.Guard = New(c)
	return t
}

// look lets the first layer's keeper look once.
func (t test) look() { t.keepers[0].look() }

func TestFirstInstallIsNoDrift(t *testing.T) {
	g := newTest(layer.Missing)
	g.look()
	if g.l.repairs != 1 || !g.Status().Protected {
		t.Errorf("repairs %d, protected %t", g.l.repairs, g.Status().Protected)
	}
	if len(g.rec.drift) != 0 || g.rec.success != 0 {
		t.Errorf("drift %v, repairs counted %d", g.rec.drift, g.rec.success)
	}
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	for _, s := range []layer.State{layer.Missing, leaking, untidy} {
		g := newTest(layer.Enforced)
		g.look()
		g.l.state = s
		g.look()
		if g.l.repairs != 1 || g.rec.drift[s] != 1 || g.rec.success != 1 || !g.Status().Protected {
			t.Errorf("%s: repairs %d, drift %v, success %d", s, g.l.repairs, g.rec.drift, g.rec.success)
		}
		if !strings.Contains(g.log.String(), "layer=fake0 family=ipv4 reason="+s.String()) {
			t.Errorf("%s: the log says %q", s, g.log)
		}
	}
}

func TestUnknownIsNotProtectedAndNotRepaired(t *testing.T) {
	g := newTest(layer.Unknown)
	for range 5 {
		g.look()
	}
	if g.l.repairs != 0 || g.Status().Protected || g.rec.drift[layer.Unknown] != 1 || g.rec.failed != 5 {
		t.Errorf("repairs %d, protected %t, drift %v, failed %d", g.l.repairs, g.Status().Protected, g.rec.drift, g.rec.failed)
	}
}

func TestNothingSupportedIsNotProtected(t *testing.T) {
	g := newTest(layer.Unsupported)
	g.look()
	if g.Status().Protected {
		t.Error("protected without any family")
	}
}

// running runs a guard in a bubble of fake time while play is the rest of the node.
func running(t *testing.T, play func(test), states ...layer.State) (rec *counts, log string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g := newTest(states...)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		synctest.Wait()
		play(g)
		cancel()
		<-done
		rec, log = g.rec, g.log.String()
	})
	return rec, log
}

func TestResyncNoticesWithoutBeingWoken(t *testing.T) {
	running(t, func(g test) {
		g.l.set(func() { g.l.state = layer.Missing })
		time.Sleep(resync - time.Millisecond)
		synctest.Wait()
		before := g.l.repaired()
		time.Sleep(2 * time.Millisecond)
		synctest.Wait()
		if after := g.l.repaired(); before != 0 || after != 1 {
			t.Errorf("%d repairs before a resync period is over, %d after", before, after)
		}
	}, layer.Enforced)
}

// A layer may ask for a look before anything else does.
func TestAgain(t *testing.T) {
	running(t, func(g test) {
		g.l.set(func() { g.l.again = time.Second; g.l.state = layer.Unknown })
		g.Wake()
		synctest.Wait()
		before := g.l.looked()
		time.Sleep(time.Second + time.Millisecond)
		synctest.Wait()
		if after := g.l.looked(); after != before+1 {
			t.Errorf("%d looks in the second after which one was asked for", after-before)
		}
	}, layer.Enforced)
}

// A neighbour that puts a harmless rule above ours again and again costs one repair in calmPeriod.
func TestUntidyForEver(t *testing.T) {
	rec, log := running(t, func(g test) {
		g.l.set(func() { g.l.state, g.l.undo = untidy, untidy })
		for range 1000 {
			g.Wake()
			time.Sleep(100 * time.Millisecond)
		}
		if n := g.l.repaired(); n < 5 || n > 12 {
			t.Errorf("%d repairs in 100 s", n)
		}
		if s := g.Status(); !s.Layers[0].Contended {
			t.Error("the fight does not show")
		}
	}, layer.Enforced)
	if n := strings.Count(log, "something keeps undoing"); n != 1 || rec.errors == 0 {
		t.Errorf("the fight was said %d times, %d repairs failed", n, rec.errors)
	}
	if n := strings.Count(log, "\n"); n > 15 {
		t.Errorf("%d log lines:\n%s", n, log)
	}
}

// A neighbour that keeps shadowing our rule is answered at once, then at a limited rate, and the log stays short.
func TestLeakingForEver(t *testing.T) {
	_, log := running(t, func(g test) {
		g.l.set(func() { g.l.state, g.l.undo = leaking, leaking })
		for range 10_000 {
			g.Wake()
			time.Sleep(10 * time.Millisecond)
		}
		if n := g.l.repaired(); n < urgentBurst || n > urgentBurst+100*urgentPerSecond+5 {
			t.Errorf("%d repairs in 100 s", n)
		}
		g.l.set(func() { g.l.undo = layer.State{} })
		time.Sleep(quietAfter + 20*time.Second)
		synctest.Wait()
		if !g.Status().Protected || g.Status().Layers[0].Contended {
			t.Error("not protected after the fight, or the fight goes on")
		}
	}, layer.Enforced)
	if began, ended := strings.Count(log, "something keeps undoing"), strings.Count(log, "no longer being undone"); began != 1 || ended != 1 {
		t.Errorf("the fight was said %d times, its end %d times", began, ended)
	}
	if n := strings.Count(log, "\n"); n > 20 {
		t.Errorf("%d log lines:\n%s", n, log)
	}
}

// The start of another program moves rules a dozen times within a few seconds, undoing a repair each time, and is then over:
// that is not a fight.
func TestBusyStartIsNoFight(t *testing.T) {
	_, log := running(t, func(g test) {
		for range 12 {
			g.l.set(func() { g.l.state = leaking })
			g.Wake()
			time.Sleep(500 * time.Millisecond)
			if g.Status().Layers[0].Contended {
				t.Error("contended")
			}
		}
		time.Sleep(2 * time.Minute)
		// The next one, later, is no more a fight than the first.
		for range 12 {
			g.l.set(func() { g.l.state = leaking })
			g.Wake()
			time.Sleep(500 * time.Millisecond)
		}
	}, layer.Enforced)
	if strings.Contains(log, "something keeps undoing") {
		t.Errorf("it was called a fight:\n%s", log)
	}
	if n := strings.Count(log, "rules drifted"); n == 0 || n > 2*(linesBurst+1) {
		t.Errorf("%d lines about 24 drifts", n)
	}
}

func TestFailedRepairsBackOff(t *testing.T) {
	rec, log := running(t, func(g test) {
		g.l.set(func() { g.l.state, g.l.failing = layer.Missing, errors.New("no") })
		for range 1000 {
			g.Wake()
			time.Sleep(100 * time.Millisecond)
		}
		// 10, 20, … 1280 ms, then every maxRetry.
		if n, most := g.l.repaired(), 8+int(100*time.Second/maxRetry); n < most-5 || n > most+2 {
			t.Errorf("%d attempts in 100 s, want about %d", n, most)
		}
		g.l.set(func() { g.l.failing = nil })
		time.Sleep(maxRetry + time.Second)
		synctest.Wait()
		if !g.Status().Protected {
			t.Error("not protected after repairs work again")
		}
	}, layer.Enforced)
	if rec.success != 1 || strings.Count(log, "repairing rules failed") != 1 {
		t.Errorf("success %d, log:\n%s", rec.success, log)
	}
}

// In a fight, a repair fails now and then because the chain has just changed. One that succeeds ends the back-off, even if it
// is undone before it is read back; otherwise the pauses would only ever grow.
func TestAcceptedRepairEndsTheBackOff(t *testing.T) {
	running(t, func(g test) {
		g.l.set(func() { g.l.state, g.l.failing = layer.Missing, errors.New("no") })
		g.Wake()
		time.Sleep(time.Second)
		before := g.l.repaired()
		g.l.set(func() { g.l.failing, g.l.undo = nil, layer.Missing })
		time.Sleep(maxRetry)
		synctest.Wait()
		if g.l.repaired() == before || g.keepers[0].pacer.failures != 0 {
			t.Errorf("%d repairs, then %d; %d failures in a row", before, g.l.repaired(), g.keepers[0].pacer.failures)
		}
	}, layer.Enforced)
}

// A storm of wake-ups is bounded: a look costs commands.
func TestLooksAreBounded(t *testing.T) {
	running(t, func(g test) {
		for range 10_000 {
			g.Wake()
			time.Sleep(time.Millisecond)
		}
		g.l.mu.Lock()
		defer g.l.mu.Unlock()
		if n := g.l.looks; n > looksBurst+10*looksPerSecond+5 || n < looksBurst {
			t.Errorf("%d looks in 10 s", n)
		}
	}, layer.Enforced)
}

// What was read too long ago proves nothing, even if nobody says otherwise because the keeper hangs.
func TestStatusGoesStale(t *testing.T) {
	g := newTest(layer.Missing)
	if s := g.Status(); s.Protected || s.Layers[0].State != layer.Unknown {
		t.Errorf("before the first look: %+v", s)
	}
	g.look()
	now := time.Now()
	if s := g.board.status(now.Add(freshPeriods*resync-time.Second), Evidence{}); !s.Protected || s.Layers[0].State != layer.Enforced {
		t.Errorf("within three resync periods: %+v", s)
	}
	if s := g.board.status(now.Add(freshPeriods*resync+time.Second), Evidence{}); s.Protected || s.Layers[0].State != layer.Unknown {
		t.Errorf("after three resync periods: %+v", s)
	}
	if b := newBoard(100 * time.Millisecond); b.fresh != minFresh {
		t.Errorf("with a short resync period, readings are out of date after %s", b.fresh)
	}
}

// Drift shows before the repair, which may take long.
func TestDriftShowsDuringTheRepair(t *testing.T) {
	g := newTest(layer.Enforced)
	g.look()
	g.l.state = layer.Missing
	g.l.during = func() {
		if g.Status().Protected {
			t.Error("protected while the rule is missing")
		}
	}
	g.look()
	if g.l.repairs != 1 || !g.Status().Protected {
		t.Errorf("repairs %d, protected %t", g.l.repairs, g.Status().Protected)
	}
}

// A layer that hangs delays no other, and becomes unknown a second after a wake that it did not answer.
func TestHangingLayerDelaysNoOther(t *testing.T) {
	running(t, func(g test) {
		other := g.keepers[1].layer.(*fakeLayer)
		hang := make(chan struct{})
		other.set(func() { other.hang = hang })
		g.Wake()
		synctest.Wait()
		for range 20 {
			g.l.set(func() { g.l.state = layer.Missing })
			g.Wake()
			synctest.Wait()
			if s := g.Status().Layers[0].State; s != layer.Enforced {
				t.Fatalf("the layer beside it is %s", s)
			}
		}
		if !g.Status().Protected {
			t.Error("unknown before a second was over")
		}
		time.Sleep(wakeServed + time.Millisecond)
		if s := g.Status(); s.Protected || s.Layers[1].State != layer.Unknown || s.Layers[0].State != layer.Enforced {
			t.Errorf("a second after the wake: %+v", s)
		}
		other.set(func() { other.hang = nil })
		close(hang)
		synctest.Wait()
		if !g.Status().Protected {
			t.Errorf("when it hangs no more: %+v", g.Status())
		}
	}, layer.Enforced, layer.Enforced)
}

// Only the keepers of the layers that may have changed are woken, and all of them if that is not known.
func TestWakeOfALayer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var layers []Layer
		fakes := map[imds.Family]*fakeLayer{}
		for _, f := range imds.Families {
			fakes[f] = &fakeLayer{id: layer.ID{Name: "fake", Family: f}, state: layer.Enforced}
			layers = append(layers, fakes[f])
		}
		g := New(Config{Layers: layers, Resync: resync, Recorder: &counts{drift: map[layer.State]int{}}, Log: slog.New(slog.DiscardHandler)})
		ctx, cancel := context.WithCancel(t.Context())
		go g.Run(ctx)
		synctest.Wait()
		for _, c := range []struct {
			wake       []layer.ID
			ipv4, ipv6 int // looks in all
		}{
			{[]layer.ID{fakes[imds.IPv4].id}, 2, 1},
			{[]layer.ID{fakes[imds.IPv6].id}, 2, 2},
			{[]layer.ID{fakes[imds.IPv4].id, fakes[imds.IPv6].id}, 3, 3},
			{[]layer.ID{{Name: "another", Family: imds.IPv4}}, 3, 3},
			{nil, 4, 4},
		} {
			g.Wake(c.wake...)
			synctest.Wait()
			if v4, v6 := fakes[imds.IPv4].looked(), fakes[imds.IPv6].looked(); v4 != c.ipv4 || v6 != c.ipv6 {
				t.Errorf("after a wake of %v: %d and %d looks, want %d and %d", c.wake, v4, v6, c.ipv4, c.ipv6)
			}
		}
		cancel()
		synctest.Wait()
	})
}

// A wake in the middle of a look counts from that moment, and not from the start of the look.
func TestWakeDuringALook(t *testing.T) {
	running(t, func(g test) {
		hang := make(chan struct{})
		g.l.set(func() { g.l.hang = hang })
		time.Sleep(resync + time.Millisecond) // the resync: nobody says that anything has changed
		synctest.Wait()
		time.Sleep(2 * wakeServed)
		if !g.Status().Protected {
			t.Error("a look that nobody asked for made the state unknown")
		}
		g.Wake()
		time.Sleep(wakeServed - time.Millisecond)
		if !g.Status().Protected {
			t.Error("unknown within a second")
		}
		time.Sleep(2 * time.Millisecond)
		if g.Status().Protected {
			t.Error("protected although a wake has waited for a second")
		}
		g.l.set(func() { g.l.hang = nil })
		close(hang)
		synctest.Wait()
		if !g.Status().Protected {
			t.Error("not protected after the look that the wake asked for")
		}
	}, layer.Enforced)
}

// What a look knows to be out of date before it hangs, counts at once.
func TestDoubtCountsAtOnce(t *testing.T) {
	running(t, func(g test) {
		hang := make(chan struct{})
		g.l.set(func() { g.l.hang, g.l.doubts = hang, "the summary has changed" })
		g.Wake()
		synctest.Wait()
		s := g.Status()
		if s.Protected || s.Layers[0].State != layer.Unknown || s.Layers[0].Detail != "the summary has changed" {
			t.Errorf("%+v", s)
		}
		g.l.set(func() { g.l.hang, g.l.doubts = nil, "" })
		close(hang)
		synctest.Wait()
		if !g.Status().Protected {
			t.Error("not protected after the look")
		}
	}, layer.Enforced)
}

// In a new place, such as another backend, the rules are not installed yet: that is not a drift.
func TestNewPlaceIsNoDrift(t *testing.T) {
	g := newTest(layer.Missing)
	g.look()
	g.l.state, g.l.place = layer.Missing, "elsewhere"
	g.look()
	if len(g.rec.drift) != 0 || g.l.repairs != 2 || !g.Status().Protected {
		t.Errorf("drift %v, %d repairs", g.rec.drift, g.l.repairs)
	}
	if n := strings.Count(g.log.String(), "rules installed"); n != 2 {
		t.Errorf("%d installs in the log:\n%s", n, g.log)
	}
	g.l.state = layer.Missing
	g.look()
	if g.rec.drift[layer.Missing] != 1 {
		t.Errorf("drift in the same place: %v", g.rec.drift)
	}
}

// Nor is it a drift or a failed repair if the place changes after what was lost in the old one has been put back.
func TestNewPlaceAfterARepair(t *testing.T) {
	g := newTest(layer.Enforced)
	g.look()
	g.l.state, g.l.undo = layer.Missing, layer.Missing
	g.l.during = func() { g.l.place = "elsewhere" }
	if again := g.keepers[0].look(); again != minRetry {
		t.Errorf("the next look is after %s", again)
	}
	g.l.undo, g.l.during = layer.State{}, nil
	g.look()
	if g.rec.drift[layer.Missing] != 1 || g.rec.errors != 0 || !g.Status().Protected {
		t.Errorf("drift %v, %d failed repairs, %+v", g.rec.drift, g.rec.errors, g.Status())
	}
	if n := strings.Count(g.log.String(), "rules installed"); n != 1 {
		t.Errorf("%d installs in the log:\n%s", n, g.log)
	}
}

func TestPolicyIsReplacedWhileRunning(t *testing.T) {
	running(t, func(g test) {
		g.SetPolicy(policy.New(nil, policy.Reject))
		synctest.Wait()
		g.l.mu.Lock()
		defer g.l.mu.Unlock()
		if g.l.policy.Verdict() != policy.Reject {
			t.Errorf("the last look was by %s", g.l.policy)
		}
	}, layer.Enforced)
}

// Paths are protected, not layers: each family by one of its layers. An unsupported layer stops nothing; a family of which no
// packet crosses the node needs no layer. A layer of sockets never closes a path alone.
func TestJudge(t *testing.T) {
	var (
		in      = layer.Reading{State: layer.Enforced}
		any     = layer.Reading{State: layer.Enforced, AnyInterface: true}
		none    = layer.Reading{State: layer.Unsupported}
		noPath  = layer.Reading{State: layer.Unsupported, NoPath: true}
		out     = layer.Reading{State: layer.Missing, AnyInterface: true}
		leaks   = layer.Reading{State: leaking}
		untidy  = layer.Reading{State: untidy}
		unknown = layer.Reading{State: layer.Unknown}

		sockets        = layer.Reading{State: layer.Enforced, SocketsOnly: true}
		socketsOut     = layer.Reading{State: layer.Missing, SocketsOnly: true}
		socketsUnknown = layer.Reading{State: layer.Unknown, SocketsOnly: true}
	)
	for _, c := range []struct {
		readings                                []layer.Reading // of the layers fake0 ipv4, fake0 ipv6, fake1 ipv4, fake1 ipv6
		protected, anyInterface, open, degraded bool
	}{
		{nil, false, false, false, false},
		{[]layer.Reading{in, in}, true, false, false, false},
		{[]layer.Reading{untidy, in}, true, false, false, false},
		{[]layer.Reading{leaks, in}, false, false, true, true},
		{[]layer.Reading{in, unknown}, false, false, false, true},
		{[]layer.Reading{leaks, unknown}, false, false, true, true},
		{[]layer.Reading{in, none}, false, false, true, false},
		{[]layer.Reading{in, noPath}, true, false, false, false},
		{[]layer.Reading{none, none}, false, false, true, false},
		{[]layer.Reading{noPath, noPath}, false, false, false, false},

		{[]layer.Reading{in, in, any, any}, true, true, false, false},
		{[]layer.Reading{in, in, any, in}, true, false, false, false},
		{[]layer.Reading{none, none, any, any}, true, true, false, false},
		{[]layer.Reading{out, out, any, any}, true, true, false, true},
		{[]layer.Reading{in, in, out, any}, true, false, false, true},
		{[]layer.Reading{unknown, in, in, in}, true, false, false, true},
		{[]layer.Reading{out, in, any, out}, true, false, false, true},
		{[]layer.Reading{out, in, unknown, any}, false, false, false, true},
		{[]layer.Reading{out, in, none, any}, false, false, true, true},
		{[]layer.Reading{in, unknown, in, none}, false, false, false, true},
		{[]layer.Reading{in, noPath, any, any}, true, true, false, false},
		{[]layer.Reading{in, noPath, any, none}, true, true, false, false},
		{[]layer.Reading{in, noPath, any, out}, true, true, false, true},
		{[]layer.Reading{in, noPath, any, unknown}, true, true, false, true},
		{[]layer.Reading{in, in, any, noPath}, true, true, false, false},

		{[]layer.Reading{sockets, sockets}, false, false, true, false},
		{[]layer.Reading{any, any, sockets, sockets}, true, true, false, false},
		{[]layer.Reading{in, in, socketsOut, sockets}, true, false, false, true},
		{[]layer.Reading{in, in, sockets, socketsUnknown}, true, false, false, true},
		{[]layer.Reading{in, in, none, none}, true, false, false, false},
		{[]layer.Reading{out, in, sockets, sockets}, false, false, true, true},
		{[]layer.Reading{out, in, socketsUnknown, sockets}, false, false, true, true},
		{[]layer.Reading{unknown, in, sockets, sockets}, false, false, false, true},
	} {
		var layers []LayerStatus
		for i, r := range c.readings {
			layers = append(layers, LayerStatus{ID: layer.ID{Name: fmt.Sprint("fake", i/2), Family: imds.Families[i%2]}, Reading: r})
		}
		s := Judge(layers, Evidence{})
		if s.Protected != c.protected || s.AnyInterface != c.anyInterface || s.Open != c.open || s.Degraded != c.degraded {
			t.Errorf("%+v: protected %t, any interface %t, open %t, degraded %t", c.readings, s.Protected, s.AnyInterface, s.Open, s.Degraded)
		}
	}
}

// The evidence beside the layers: with a way past FORWARD, sockets have to be refused as well, in each family; as long as it is
// not known whether there is one, the result is unknown; and an answered probe outweighs every reading.
func TestJudgeByEvidence(t *testing.T) {
	var (
		in             = layer.Reading{State: layer.Enforced, AnyInterface: true}
		out            = layer.Reading{State: layer.Missing}
		none           = layer.Reading{State: layer.Unsupported}
		noPath         = layer.Reading{State: layer.Unsupported, NoPath: true}
		sockets        = layer.Reading{State: layer.Enforced, SocketsOnly: true}
		socketsOut     = layer.Reading{State: layer.Missing, SocketsOnly: true}
		auditing       = layer.Reading{State: layer.Auditing, SocketsOnly: true}
		socketsUnknown = layer.Reading{State: layer.Unknown, SocketsOnly: true}

		past       = Evidence{Bypasses: []string{"a macvlan"}}
		unsearched = Evidence{Unsearched: errors.New("no")}
		answered   = Evidence{Answered: "by FORWARD"}
		connected  = Evidence{Connected: "a socket"}
		both       = Evidence{Connected: "a socket", Bypasses: past.Bypasses}
		notProbed  = Evidence{NotProbed: errors.New("no")}
	)
	for _, c := range []struct {
		evidence                           Evidence
		readings                           []layer.Reading // of the layers fake0 ipv4, fake0 ipv6, fake1 ipv4, fake1 ipv6
		protected, forward, open, degraded bool
	}{
		{past, []layer.Reading{in, in}, false, true, true, false},
		{past, []layer.Reading{in, in, none, none}, false, true, true, false},
		{past, []layer.Reading{in, in, sockets, sockets}, true, true, false, false},
		{past, []layer.Reading{in, in, sockets, socketsOut}, false, true, true, true},
		{past, []layer.Reading{in, in, socketsUnknown, sockets}, false, true, false, true},
		{past, []layer.Reading{in, out, sockets, sockets}, false, false, true, true},
		{past, []layer.Reading{in, noPath, sockets, sockets}, true, true, false, false},
		{past, []layer.Reading{in, noPath, sockets, none}, false, true, true, false},
		{unsearched, []layer.Reading{in, in}, false, true, false, false},
		{unsearched, []layer.Reading{in, in, sockets, socketsOut}, false, true, false, true},
		{unsearched, []layer.Reading{in, in, sockets, sockets}, true, true, false, false},
		{answered, []layer.Reading{in, in, sockets, sockets}, false, true, true, false},
		{connected, []layer.Reading{in, in, sockets, sockets}, true, true, false, true},
		{both, []layer.Reading{in, in, sockets, sockets}, false, true, true, true},
		{notProbed, []layer.Reading{in, in, sockets, sockets}, true, true, false, true},
		{Evidence{Auditing: true}, []layer.Reading{in, in, sockets, sockets}, false, true, true, false},
		{Evidence{Auditing: true}, []layer.Reading{none, none, auditing, auditing}, false, false, true, false},
		{Evidence{Auditing: true}, []layer.Reading{none, none, auditing, socketsOut}, false, false, true, true},
		{Evidence{Unlisted: errors.New("no")}, []layer.Reading{in, in, sockets, sockets}, true, true, false, true},
	} {
		var layers []LayerStatus
		for i, r := range c.readings {
			layers = append(layers, LayerStatus{ID: layer.ID{Name: fmt.Sprint("fake", i/2), Family: imds.Families[i%2]}, Reading: r})
		}
		s := Judge(layers, c.evidence)
		if s.Protected != c.protected || s.Forward != c.forward || s.Open != c.open || s.Degraded != c.degraded {
			t.Errorf("%+v with %+v: protected %t, forward %t, open %t, degraded %t", c.readings, c.evidence, s.Protected, s.Forward, s.Open, s.Degraded)
		}
	}
}

// First waits for every layer, but not for ever for one that hangs.
func TestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Missing, layer.Missing)
		other := g.keepers[1].layer.(*fakeLayer)
		hang := make(chan struct{})
		other.hang = hang
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		start := time.Now()
		g.First(time.Minute)
		if waited := time.Since(start); waited != time.Minute {
			t.Errorf("waited %s for a layer that hangs", waited)
		}
		if g.Status().Layers[0].State != layer.Enforced {
			t.Error("the other layer is not enforced")
		}
		close(hang)
		start = time.Now()
		g.First(time.Minute)
		if waited := time.Since(start); waited != 0 || !g.Status().Protected {
			t.Errorf("after the first looks: waited %s more, protected %t", waited, g.Status().Protected)
		}
		cancel()
		<-done
	})
}

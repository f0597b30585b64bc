package guard

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// fakeLayer fails in ways that the kernel does not on demand. Each Repair makes the state enforced, unless told otherwise.
type fakeLayer struct {
	mu      sync.Mutex
	state   enforce.State
	reads   int
	repairs int
	failing error         // Repair fails
	undo    enforce.State // what every repair leaves instead of enforced
	during  func()        // called in the middle of a repair
}

func (l *fakeLayer) Family() enforce.Family { return enforce.IPv4 }
func (l *fakeLayer) Layer() string          { return "fake" }
func (l *fakeLayer) Lost() bool             { return false }

func (l *fakeLayer) Read() enforce.Reading {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	r := enforce.Reading{State: l.state}
	if l.state == enforce.Unknown {
		r.Err = errors.New("unreadable")
	}
	return r
}

func (l *fakeLayer) Repair() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.repairs++
	if l.during != nil {
		l.during()
	}
	if l.failing != nil {
		return l.failing
	}
	l.state = enforce.Enforced
	if l.undo != "" {
		l.state = l.undo
	}
	return nil
}

func (l *fakeLayer) set(s enforce.State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
}

func (l *fakeLayer) repaired() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.repairs
}

// counts is a Recorder.
type counts struct {
	mu              sync.Mutex
	drift           map[enforce.State]int
	success, errors int
	failed          int
}

func (c *counts) Drift(_ enforce.Family, s enforce.State) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drift[s]++
}

func (c *counts) Repaired(_ enforce.Family, ok bool, _ time.Duration) {
	c.either(ok, &c.success, &c.errors)
}

func (c *counts) Failed(enforce.Family, error) { c.either(true, &c.failed, nil) }

// either counts in one of two places.
func (c *counts) either(first bool, a, b *int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if first {
		*a++
	} else {
		*b++
	}
}

func newTest(state enforce.State) (*Guard, *fakeLayer, *counts, *bytes.Buffer) {
	layer, rec, log := &fakeLayer{state: state}, &counts{drift: map[enforce.State]int{}}, &bytes.Buffer{}
	g := New(Config{Layers: []Layer{layer}, Resync: 10 * time.Second, Recorder: rec, Log: slog.New(slog.NewTextHandler(log, nil))})
	return g, layer, rec, log
}

func TestFirstInstallIsNoDrift(t *testing.T) {
	g, layer, rec, _ := newTest(enforce.Missing)
	g.Enforce()
	if layer.repairs != 1 || !g.Status().Protected {
		t.Errorf("repairs %d, protected %t", layer.repairs, g.Status().Protected)
	}
	if len(rec.drift) != 0 || rec.success != 0 {
		t.Errorf("drift %v, repairs counted %d", rec.drift, rec.success)
	}
}

func TestDriftIsRepairedAndCounted(t *testing.T) {
	for _, s := range []enforce.State{enforce.Missing, enforce.Shadowed, enforce.Displaced, enforce.Duplicate} {
		g, layer, rec, log := newTest(enforce.Enforced)
		g.Enforce()
		layer.set(s)
		g.Enforce()
		if layer.repairs != 1 || rec.drift[s] != 1 || rec.success != 1 || !g.Status().Protected {
			t.Errorf("%s: repairs %d, drift %v, success %d", s, layer.repairs, rec.drift, rec.success)
		}
		if !strings.Contains(log.String(), "reason="+string(s)) {
			t.Errorf("%s: the log says %q", s, log)
		}
	}
}

func TestUnknownIsNotProtectedAndNotRepaired(t *testing.T) {
	g, layer, rec, _ := newTest(enforce.Unknown)
	for range 5 {
		g.Enforce()
	}
	if layer.repairs != 0 || g.Status().Protected || rec.drift[enforce.Unknown] != 1 || rec.failed != 5 {
		t.Errorf("repairs %d, protected %t, drift %v, failed %d", layer.repairs, g.Status().Protected, rec.drift, rec.failed)
	}
}

func TestNothingSupportedIsNotProtected(t *testing.T) {
	g, _, _, _ := newTest(enforce.Unsupported)
	g.Enforce()
	if g.Status().Protected {
		t.Error("protected without any family")
	}
}

// running runs the loop of a guard in a bubble of fake time while play is the rest of the node.
func running(t *testing.T, play func(*Guard, *fakeLayer), after func(*counts, string)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		g, layer, rec, log := newTest(enforce.Enforced)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		synctest.Wait()
		play(g, layer)
		cancel()
		<-done
		after(rec, log.String())
	})
}

func TestResyncNoticesWithoutBeingWoken(t *testing.T) {
	running(t, func(g *Guard, layer *fakeLayer) {
		layer.set(enforce.Missing)
		time.Sleep(10*time.Second + time.Millisecond)
		synctest.Wait()
		if layer.repaired() != 1 {
			t.Errorf("%d repairs after a resync period", layer.repaired())
		}
	}, func(*counts, string) {})
}

// A neighbour that puts a harmless rule above ours again and again costs one repair in calmPeriod.
func TestDisplacedForEver(t *testing.T) {
	running(t, func(g *Guard, layer *fakeLayer) {
		layer.mu.Lock()
		layer.state, layer.undo = enforce.Displaced, enforce.Displaced
		layer.mu.Unlock()
		for range 1000 {
			g.Wake()
			time.Sleep(100 * time.Millisecond)
		}
		if n := layer.repaired(); n < 5 || n > 12 {
			t.Errorf("%d repairs in 100 s", n)
		}
	}, func(rec *counts, log string) {
		if n := strings.Count(log, "somebody keeps undoing"); n != 1 {
			t.Errorf("the fight was said %d times", n)
		}
		if n := strings.Count(log, "\n"); n > 15 {
			t.Errorf("%d log lines:\n%s", n, log)
		}
	})
}

// A neighbour that shadows ours again and again is answered at once, then at a bounded rate, and the log stays short.
func TestShadowedForEver(t *testing.T) {
	running(t, func(g *Guard, layer *fakeLayer) {
		layer.mu.Lock()
		layer.state, layer.undo = enforce.Shadowed, enforce.Shadowed
		layer.mu.Unlock()
		for range 10_000 {
			g.Wake()
			time.Sleep(10 * time.Millisecond)
		}
		if n := layer.repaired(); n < urgentBurst || n > urgentBurst+100*urgentPerSecond+5 {
			t.Errorf("%d repairs in 100 s", n)
		}
		layer.mu.Lock()
		layer.undo = ""
		layer.mu.Unlock()
		time.Sleep(quietAfter + 20*time.Second)
		synctest.Wait()
		if !g.Status().Protected {
			t.Error("not protected after the fight")
		}
	}, func(rec *counts, log string) {
		if began, ended := strings.Count(log, "somebody keeps undoing"), strings.Count(log, "nobody undoes"); began != 1 || ended != 1 {
			t.Errorf("the fight was said %d times, its end %d times", began, ended)
		}
		if n := strings.Count(log, "\n"); n > 20 {
			t.Errorf("%d log lines:\n%s", n, log)
		}
	})
}

func TestFailedRepairsBackOff(t *testing.T) {
	running(t, func(g *Guard, layer *fakeLayer) {
		layer.mu.Lock()
		layer.state, layer.failing = enforce.Missing, errors.New("no")
		layer.mu.Unlock()
		for range 1000 {
			g.Wake()
			time.Sleep(100 * time.Millisecond)
		}
		if n := layer.repaired(); n < 10 || n > 25 {
			t.Errorf("%d attempts in 100 s", n)
		}
		layer.mu.Lock()
		layer.failing = nil
		layer.mu.Unlock()
		time.Sleep(maxRetry + time.Second)
		synctest.Wait()
		if !g.Status().Protected {
			t.Error("not protected after repairs work again")
		}
	}, func(rec *counts, log string) {
		if rec.success != 1 || strings.Count(log, "repairing rules failed") != 1 {
			t.Errorf("success %d, log:\n%s", rec.success, log)
		}
	})
}

// In a fight a repair now and then fails because the chain has just changed. One that is accepted ends the back-off, even if
// it is undone before it is read back: else the pauses would only ever grow.
func TestAcceptedRepairEndsTheBackOff(t *testing.T) {
	running(t, func(g *Guard, layer *fakeLayer) {
		layer.mu.Lock()
		layer.state, layer.failing = enforce.Missing, errors.New("no")
		layer.mu.Unlock()
		g.Wake()
		time.Sleep(time.Second)
		before := layer.repaired()
		layer.mu.Lock()
		layer.failing, layer.undo = nil, enforce.Missing
		layer.mu.Unlock()
		time.Sleep(maxRetry)
		synctest.Wait()
		if layer.repaired() == before || g.tended[0].pacer.failures != 0 {
			t.Errorf("%d repairs, then %d; %d failures in a row", before, layer.repaired(), g.tended[0].pacer.failures)
		}
	}, func(*counts, string) {})
}

// A storm of wake-ups is bounded: a look costs commands.
func TestLooksAreBounded(t *testing.T) {
	running(t, func(g *Guard, layer *fakeLayer) {
		for range 10_000 {
			g.Wake()
			time.Sleep(time.Millisecond)
		}
		layer.mu.Lock()
		defer layer.mu.Unlock()
		if n := layer.reads; n > looksBurst+10*looksPerSecond+5 {
			t.Errorf("%d looks in 10 s", n)
		}
	}, func(*counts, string) {})
}

// What was read too long ago proves nothing, even if nobody says otherwise because the loop hangs.
func TestStatusGoesStale(t *testing.T) {
	g, _, _, _ := newTest(enforce.Missing)
	if s := g.Status(); s.Protected || s.Layers[0].State != enforce.Unknown {
		t.Errorf("before the first look: %+v", s)
	}
	g.Enforce()
	now := time.Now()
	if s := g.board.status(now.Add(29 * time.Second)); !s.Protected || s.Layers[0].State != enforce.Enforced {
		t.Errorf("within three resync periods: %+v", s)
	}
	if s := g.board.status(now.Add(31 * time.Second)); s.Protected || s.Layers[0].State != enforce.Unknown {
		t.Errorf("after three resync periods: %+v", s)
	}
}

// Drift shows before the repair, which may take long.
func TestDriftShowsDuringTheRepair(t *testing.T) {
	g, layer, _, _ := newTest(enforce.Enforced)
	g.Enforce()
	layer.mu.Lock()
	layer.state = enforce.Missing
	layer.during = func() {
		if g.Status().Protected {
			t.Error("protected while the rule is missing")
		}
	}
	layer.mu.Unlock()
	g.Enforce()
	if layer.repairs != 1 || !g.Status().Protected {
		t.Errorf("repairs %d, protected %t", layer.repairs, g.Status().Protected)
	}
}

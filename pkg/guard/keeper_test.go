package guard

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imds-guard/imds-guard/pkg/layer"
)

// When a keeper looks again, and what it counts, by what a look finds and what the repair comes to.
func TestOneLook(t *testing.T) {
	broken := errors.New("broken")
	type states = map[layer.State]int
	for _, c := range []struct {
		name    string
		before  layer.State // of the look before; zero for none
		found   layer.State
		undo    layer.State // what the repair leaves; zero for enforced
		failing error
		mended  bool          // by somebody else, in the middle of the repair
		wish    time.Duration // of the layer
		again   time.Duration
		repairs int
		// What is recorded, and the log's lines by their beginnings.
		drift                   states
		success, errors, failed int
		log                     string
	}{
		{name: "nothing to do", before: layer.Enforced, found: layer.Enforced, again: resync},
		{name: "nothing to do at first", found: layer.Enforced, again: resync},
		{name: "nothing supported", found: layer.Unsupported, again: resync},
		{name: "an early look is wished", found: layer.Enforced, wish: time.Second, again: time.Second},
		{name: "a late look is wished", found: layer.Enforced, wish: 2 * resync, again: resync},

		{name: "install", found: layer.Missing, again: resync, repairs: 1, log: "INFO rules installed"},
		{name: "install, undone at once", found: layer.Missing, undo: layer.Missing, again: minRetry, repairs: 1},
		{name: "install, shadowed at once", found: layer.Missing, undo: leaking, again: minRetry, repairs: 1,
			drift: states{leaking: 1}, log: "WARN rules drifted"},
		{name: "install fails", found: layer.Missing, failing: broken, again: minRetry, repairs: 1,
			failed: 1, log: "ERROR repairing rules failed"},

		{name: "install fails, and somebody else mends", found: layer.Missing, failing: broken, mended: true, again: minRetry,
			repairs: 1, failed: 1, log: "ERROR repairing rules failed"},

		{name: "unreadable at first", found: layer.Unknown, again: resync,
			drift: states{layer.Unknown: 1}, failed: 1, log: "WARN rules drifted"},
		{name: "shadowed at first", found: leaking, again: resync, repairs: 1,
			drift: states{leaking: 1}, success: 1, log: "WARN rules drifted, INFO rules repaired"},
		{name: "repair", before: layer.Enforced, found: layer.Missing, again: resync, repairs: 1,
			drift: states{layer.Missing: 1}, success: 1, log: "WARN rules drifted, INFO rules repaired"},
		{name: "repair of what stops packets", before: layer.Enforced, found: untidy, again: resync, repairs: 1,
			drift: states{untidy: 1}, success: 1, log: "WARN rules drifted, INFO rules repaired"},
		{name: "repair, undone at once", before: layer.Enforced, found: layer.Missing, undo: leaking, again: minRetry, repairs: 1,
			drift: states{layer.Missing: 1, leaking: 1}, errors: 1, log: "WARN rules drifted, WARN rules drifted"},
		{name: "repair fails", before: layer.Enforced, found: layer.Missing, failing: broken, again: minRetry, repairs: 1,
			drift: states{layer.Missing: 1}, errors: 1, failed: 1, log: "WARN rules drifted, ERROR repairing rules failed"},
		{name: "repair fails, and somebody else mends", before: layer.Enforced, found: layer.Missing, failing: broken, mended: true,
			again: minRetry, repairs: 1, drift: states{layer.Missing: 1}, errors: 1, failed: 1,
			log: "WARN rules drifted, ERROR repairing rules failed"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := newTest(c.before)
			looked := 0
			g.keepers[0].Looked = func() { looked++ }
			if c.before != (layer.State{}) {
				g.look()
				looked, g.rec.looks = 0, 0
			}
			g.l.state, g.l.undo, g.l.failing, g.l.again = c.found, c.undo, c.failing, c.wish
			if c.mended {
				g.l.during = func() { g.l.state = layer.Enforced }
			}
			if again := g.keepers[0].look(); again != c.again {
				t.Errorf("%s: looks again after %s, want %s", c.name, again, c.again)
			}
			if looked != 1 || g.rec.looks != 1+c.repairs || g.l.repairs != c.repairs {
				t.Errorf("%s: %d looks said, %d readings recorded, %d repairs", c.name, looked, g.rec.looks, g.l.repairs)
			}
			if !maps.Equal(g.rec.drift, c.drift) {
				t.Errorf("%s: drift %v, want %v", c.name, g.rec.drift, c.drift)
			}
			if r := g.rec; r.success != c.success || r.errors != c.errors || r.failed != c.failed {
				t.Errorf("%s: %d repairs, %d in vain, %d errors", c.name, r.success, r.errors, r.failed)
			}
			if got := g.lines(); got != c.log {
				t.Errorf("%s: the log is %q, want %q", c.name, got, c.log)
			}
		})
	}
}

// lines are the level and the message of each line in the log, down to the first semicolon.
func (t test) lines() string {
	var lines []string
	for line := range strings.Lines(t.log.String()) {
		_, rest, _ := strings.Cut(line, "level=")
		level, rest, _ := strings.Cut(rest, " msg=\"")
		words, _, _ := strings.Cut(rest, "\"")
		words, _, _ = strings.Cut(words, ";")
		lines = append(lines, level+" "+words)
	}
	return strings.Join(lines, ", ")
}

// What the log says of a drift: who is suspected, and how long packets passed.
func TestSuspectAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced)
		g.look()
		g.l.state = layer.Missing
		g.l.during = func() { time.Sleep(3 * time.Second) }
		g.keepers[0].Suspect = func(layer.ID) string { return "dockerd (pid 7)" }
		g.look()
		if !strings.Contains(g.log.String(), `suspect="dockerd (pid 7)"`) || !strings.Contains(g.log.String(), "took=3s") {
			t.Errorf("the log is\n%s", g.log)
		}
		if g.rec.took != 3*time.Second {
			t.Errorf("the repair is recorded with %s", g.rec.took)
		}
	})
}

// A fight in which each repair lasts a few seconds is still a fight; it is not logged one by one, and comes to an end.
func TestFightOverRepairsThatHold(t *testing.T) {
	_, log := running(t, func(g test) {
		undo := func() {
			g.l.set(func() { g.l.state = leaking })
			g.Wake()
			synctest.Wait()
		}
		undo() // which undoes an install, and no repair
		for i := range 40 {
			time.Sleep(4 * time.Second)
			undo()
			if g.Status().Layers[0].Contended != (i >= fightCount-1) {
				t.Errorf("after %d undone repairs: contended %t", i+1, g.Status().Layers[0].Contended)
			}
		}
		// Nobody can tell whether it is over while nothing can be read.
		time.Sleep(undoneWithin + time.Second)
		g.l.set(func() { g.l.state = layer.Unknown })
		time.Sleep(2 * quietAfter)
		if !g.Status().Layers[0].Contended {
			t.Error("the fight is over, and nobody could see that")
		}
		undo()
		time.Sleep(quietAfter - resync)
		if !g.Status().Layers[0].Contended {
			t.Error("the fight is over before its time")
		}
		time.Sleep(2 * resync)
		if g.Status().Layers[0].Contended {
			t.Error("the fight is not over")
		}
	}, layer.Missing)
	if !strings.Contains(log, "undone=40\n") {
		t.Errorf("the end of the fight does not say how many repairs were undone:\n%s", log)
	}
	if n := strings.Count(log, "rules drifted"); n > fightCount+1 {
		t.Errorf("%d lines about drifts", n)
	}
}

// A reading that fails now and then does not undo a repair, however soon after one it comes.
func TestUnreadableIsNoFight(t *testing.T) {
	_, log := running(t, func(g test) {
		become := func(s layer.State) {
			time.Sleep(2 * time.Second)
			g.l.set(func() { g.l.state = s })
			g.Wake()
			synctest.Wait()
		}
		become(leaking)
		for range 2 * fightCount {
			become(layer.Unknown)
			become(layer.Enforced)
			if g.Status().Layers[0].Contended {
				t.Error("contended")
			}
		}
	}, layer.Enforced)
	if strings.Contains(log, "something keeps undoing") {
		t.Errorf("it was called a fight:\n%s", log)
	}
}

// Single drifts are logged at once at first, then only now and then. A failed reading is always logged.
func TestLinesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced)
		g.look()
		g.l.failing = errors.New("no") // a drift that undoes no repair is no fight
		drift := func(s layer.State, n int) (lines int) {
			g.log.Reset()
			for range n {
				g.l.state = s
				g.look()
				g.l.state = layer.Enforced
				g.look()
			}
			return strings.Count(g.log.String(), "rules drifted")
		}
		if n := drift(leaking, linesBurst+5); n != linesBurst {
			t.Errorf("%d lines at once", n)
		}
		time.Sleep(linesEvery - time.Millisecond)
		if n := drift(leaking, 1); n != 0 {
			t.Errorf("%d lines before the pause is over", n)
		}
		time.Sleep(time.Millisecond)
		if n := drift(leaking, 2); n != 1 {
			t.Errorf("%d lines after the pause", n)
		}
		if n := drift(layer.Unknown, 3); n != 3 {
			t.Errorf("%d lines about three times that nothing could be read", n)
		}
	})
}

// A detail that keeps changing is logged a few times at once, then only now and then.
func TestNotesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced)
		noted := func(times int) int {
			g.log.Reset()
			for i := range times {
				g.l.detail = fmt.Sprint("detail ", i)
				g.look()
			}
			return strings.Count(g.log.String(), "rules are in force")
		}
		if n := noted(linesBurst + 5); n != linesBurst {
			t.Errorf("%d lines at once", n)
		}
		time.Sleep(linesEvery - time.Millisecond)
		if n := noted(5); n != 0 {
			t.Errorf("%d lines before the pause is over", n)
		}
		time.Sleep(time.Millisecond)
		if n := noted(5); n != 1 {
			t.Errorf("%d lines after the pause", n)
		}
	})
}

// What is unusual about rules in force is logged once, whenever it changes.
func TestNotesAndReadingAgain(t *testing.T) {
	g := newTest(layer.Enforced)
	for _, c := range []struct {
		state  layer.State
		detail string
		lines  string
	}{
		{layer.Enforced, "", ""},
		{layer.Enforced, "by one witness", "INFO rules are in force"},
		{layer.Enforced, "by one witness", ""},
		{layer.Unsupported, "another", "INFO this node does not support the layer"},
		{layer.Unknown, "unreadable", "WARN rules drifted"},
		{layer.Unknown, "still unreadable", ""},
		{layer.Enforced, "another", "INFO rules can be read again"},
		{layer.Enforced, "", "INFO rules are in force"},
		{layer.Unknown, "unreadable", "WARN rules drifted"},
		{leaking, "leaks", "WARN rules drifted, INFO rules repaired, INFO rules can be read again"},
	} {
		g.log.Reset()
		g.l.state, g.l.detail = c.state, c.detail
		g.look()
		if got := g.lines(); got != c.lines {
			t.Errorf("%s, %q: the log is %q, want %q", c.state, c.detail, got, c.lines)
		}
	}
}

// Having nothing to enforce is not logged as a lack of support.
func TestNoteOfNoPath(t *testing.T) {
	g := newTest(layer.Unsupported)
	g.l.noPath, g.l.detail = true, "no IPv6 here"
	g.look()
	if got := g.lines(); got != "INFO there is nothing to enforce" {
		t.Errorf("the log is %q", got)
	}
}

// Whoever repaired the rules, the next failure is a new one: it is logged, and its pause is short.
func TestMendedBySomebodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced)
		g.look()
		fail := func() time.Duration {
			g.l.state, g.l.failing = layer.Missing, errors.New("no")
			return g.keepers[0].look()
		}
		for range 3 {
			time.Sleep(fail())
		}
		g.l.state = layer.Enforced
		g.look()
		if again := fail(); again != minRetry || strings.Count(g.log.String(), "repairing rules failed") != 2 {
			t.Errorf("looks again after %s; the log is\n%s", again, g.log)
		}
	})
}

// A held back repair is waited for, but no longer than the resync period: something else may have changed by then.
func TestHeldBackRepair(t *testing.T) {
	for _, period := range []time.Duration{time.Second, time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			g := newTest(layer.Enforced)
			k := g.keepers[0]
			k.Resync = period
			g.l.state, g.l.undo = untidy, untidy
			g.look()
			time.Sleep(2 * time.Second)
			if again := k.look(); again != min(period, calmPeriod-2*time.Second) || g.l.repairs != 1 {
				t.Errorf("with a resync period of %s it looks again after %s; %d repairs", period, again, g.l.repairs)
			}
		})
	}
}

// Looks that are asked for are done at once up to the burst. One that waits for its turn at the end is not done any more.
func TestLookThatWaitsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { g.Run(ctx); close(done) }()
		synctest.Wait()
		for range looksBurst + 5 {
			g.Wake()
			synctest.Wait()
		}
		cancel()
		<-done
		if g.l.looks != 1+looksBurst {
			t.Errorf("%d looks, want the first and %d more", g.l.looks, looksBurst)
		}
	})
}

// Run does not return during a look, so that nothing is written after it has returned.
func TestRunWaitsForItsKeepers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced, layer.Enforced)
		hang := make(chan struct{})
		g.l.hang = hang
		ctx, cancel := context.WithCancel(t.Context())
		returned := false
		go func() { g.Run(ctx); returned = true }()
		synctest.Wait()
		cancel()
		synctest.Wait()
		if returned {
			t.Error("returned in the middle of a look")
		}
		close(hang)
		synctest.Wait()
		if !returned {
			t.Error("not returned after the look")
		}
	})
}

// Functions that the caller sets are called, and those left nil are not needed.
func TestCallbacks(t *testing.T) {
	looked := 0
	l := &fakeLayer{state: layer.Enforced}
	g := New(Config{Layers: []Layer{l}, Resync: resync, Recorder: &counts{drift: map[layer.State]int{}},
		Log: slog.New(slog.DiscardHandler), Looked: func() { looked++ }, Suspect: func(layer.ID) string { looked += 10; return "" }})
	g.keepers[0].look()
	if looked != 11 {
		t.Errorf("%d", looked)
	}
}

// What a repair fails at holds up the repair of nothing else: another loss is repaired at once.
func TestAnotherLossIsRepairedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newTest(layer.Enforced)
		g.look()
		g.l.state, g.l.detail, g.l.failing = layer.Missing, "somebody's is in the way", errors.New("it is not ours")
		for range 5 {
			time.Sleep(g.keepers[0].look())
		}
		failed := g.l.repairs
		if g.look(); g.l.repairs > failed+1 {
			t.Errorf("%d repairs at once of what can't be repaired", g.l.repairs-failed)
		}
		failed = g.l.repairs
		if g.look(); g.l.repairs != failed {
			t.Error("the pause after a failed repair is none")
		}
		g.l.detail = "that, and another one is lost"
		if g.look(); g.l.repairs != failed+1 {
			t.Error("another loss waits for the pause after what failed before")
		}
	})
}

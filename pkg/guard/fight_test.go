package guard

import (
	"testing"
	"time"
)

// A fight begins with the fourth undone repair in a row, and not before ten seconds of them.
func TestFightBegins(t *testing.T) {
	const near, far = undoneWithin, undoneWithin + 1
	for _, c := range []struct {
		name string
		gaps []time.Duration // from each repair to the drift after it, which is repaired at once
		want bool
	}{
		{"three", []time.Duration{near, near, near}, false},
		{"four", []time.Duration{near, near, near, near}, true},
		{"four, just long enough", []time.Duration{1, 0, 0, fightTime}, true},
		{"four, just too quick", []time.Duration{1, 0, 0, fightTime - 1}, false},
		{"many, just too quick", []time.Duration{near, 0, 0, 0, 0, 0, 0, 0, fightTime - 1}, false},
		{"many, long enough in the end", []time.Duration{near, 0, 0, 0, 0, 0, 0, 0, fightTime}, true},
		{"four, the first by accident", []time.Duration{far, near, near, near}, false},
		{"one that lasted among them", []time.Duration{near, near, near, far, near, near, near}, false},
		{"four after one that lasted", []time.Duration{near, near, far, near, near, near, near}, true},
		{"the time counts from the first of the row", []time.Duration{near, near, far, 1, 0, 0, fightTime - 1}, false},
	} {
		var f fight
		now := time.Now()
		f.repaired(now)
		began := 0
		for _, gap := range c.gaps {
			now = now.Add(gap)
			if f.drifted(now) {
				began++
			}
			f.repaired(now)
		}
		if f.on != c.want || (began == 1) != c.want || began > 1 {
			t.Errorf("%s: on %t, begun %d times, want %t", c.name, f.on, began, c.want)
		}
	}
}

// It ends when a repair has lasted for a minute, and is not begun again by what comes in between.
func TestFightEnds(t *testing.T) {
	now := time.Now()
	f := fight{on: true, undone: 7, lastRepair: now}
	if f.drifted(now.Add(undoneWithin + 1)); !f.on || f.undone != 7 {
		t.Errorf("a drift that undoes nothing: %+v", f)
	}
	if f.drifted(now.Add(undoneWithin)) || f.undone != 8 {
		t.Errorf("one more undone: %+v", f)
	}
	for _, c := range []struct {
		name    string
		fight   fight
		after   time.Duration
		drifted bool
		want    bool
	}{
		{"just not yet", f, quietAfter - 1, false, false},
		{"now", f, quietAfter, false, true},
		{"not while there is a drift", f, quietAfter, true, false},
		{"there was none", fight{lastRepair: now}, quietAfter, false, false},
	} {
		if got := c.fight.over(now.Add(c.after), c.drifted); got != c.want {
			t.Errorf("%s: over %t", c.name, got)
		}
	}
}

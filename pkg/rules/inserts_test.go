package rules

import (
	"testing"
	"time"
)

// kernel counts rules as the kernel would.
type kernel int

func (k kernel) count() int { return int(k) }

func TestInsertsThatStayUnseenEnd(t *testing.T) {
	var i inserts
	now := time.Now()
	rules := kernel(5)
	tries := 0
	for range 365 * 24 * 60 { // a year of looks, one a minute
		now = now.Add(time.Minute)
		// What can't be read in between says nothing, and must not start the count anew.
		_ = i.read(unseen, rules.count, now)
		if i.allowed(now) == nil {
			i.made(rules.count())
			rules++
			tries++
		}
		_ = i.read(unseen, rules.count, now)
		_ = i.read(lacking, rules.count, now)
	}
	if tries < maxGrown+1 || tries > maxGrown+20 {
		t.Errorf("%d inserts in a year", tries)
	}
	if err := i.read(shown, rules.count, now); err != nil || i.allowed(now) != nil {
		t.Errorf("inserts stay refused after a reading that shows the rule: %v", err)
	}
}

// Somebody deletes the rule each time before it is read back: that is a fight, not a bad reading.
func TestInsertsThatSomebodyUndoesGoOn(t *testing.T) {
	var i inserts
	rules := kernel(7)
	for n := range 10_000 {
		i.made(rules.count())
		if err := i.read(lacking, rules.count, time.Now()); err != nil {
			t.Fatalf("insert %d ends the inserts: %v", n+1, err)
		}
	}
}

// Where the kernel gives no count, every insert may have stayed.
func TestUncountedInsertsEnd(t *testing.T) {
	var i inserts
	for range maxGrown {
		i.made(uncounted)
		_ = i.read(lacking, kernel(uncounted).count, time.Now())
	}
	if i.allowed(time.Now()) == nil {
		t.Error("inserts go on without any evidence")
	}
}

func TestBlockedNeverGoesBack(t *testing.T) {
	rule := Rule{In: "eni+"}
	var b blocked
	look := func(want uint64, packets ...uint64) {
		t.Helper()
		var c Chain
		for _, p := range packets {
			c.Lines = append(c.Lines, Line{Rule: rule, Exact: true, Packets: p})
		}
		if b.add([]Rule{rule}, c); b.total != want {
			t.Errorf("after a look at %v: %d packets, want %d", packets, b.total, want)
		}
	}
	look(10, 10)
	look(15, 15)
	look(15)       // gone
	look(18, 3)    // put in again by somebody
	look(20, 3, 2) // a second copy
	look(20, 2)    // the first copy deleted
	look(21, 1)    // zeroed
	look(22, 2)
	b.restart() // our own transaction
	look(24, 2)
}

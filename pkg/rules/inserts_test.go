package rules

import (
	"fmt"
	"testing"
	"time"
)

// numbered are rules 1 to n.
func numbered(n int) map[string]bool {
	set := map[string]bool{}
	for i := range n {
		set[fmt.Sprint("rule ", i+1)] = true
	}
	return set
}

// Inserted rules pile up unrecognised: the tries become rare, at once and for good, whatever else a year brings.
func TestInsertsThatStayUnrecognisedEnd(t *testing.T) {
	var i inserts
	now := time.Now()
	pile, there := 0, numbered(0)
	_, _ = i.read(false, there, now)
	for range 365 * 24 * 6 { // a year of looks, one in ten minutes
		now = now.Add(10 * time.Minute)
		if _, err := i.read(false, there, now); err == nil {
			i.made(1, true)
			pile++
			there = numbered(pile)
			_, _ = i.read(false, there, now)
		}
	}
	if pile < maxUnrecognised+1 || pile > maxUnrecognised+25 {
		t.Errorf("%d inserts in a year", pile)
	}
	if _, err := i.read(true, numbered(pile), now); err != nil {
		t.Errorf("inserts stay refused after a reading that shows the rule: %v", err)
	}
}

// pile lets n inserts pile up.
func pile(i *inserts, n int, now time.Time) (err error) {
	_, _ = i.read(false, numbered(0), now)
	for k := range n {
		i.made(1, true)
		_, err = i.read(false, numbered(k+1), now)
	}
	return err
}

func TestInsertsPauseFromTheThirdOn(t *testing.T) {
	for n := range 6 {
		var i inserts
		if err := pile(&i, n, time.Now()); (err != nil) != (n >= maxUnrecognised) {
			t.Errorf("after %d: %v", n, err)
		}
	}
}

// The pause is exact: it doubles, and it ends.
func TestPauseDoubles(t *testing.T) {
	var i inserts
	now := time.Now()
	for n := 1; n <= 8; n++ {
		i.made(1, true)
		pause, _ := i.read(false, numbered(n), now)
		want := time.Duration(0)
		if n >= maxUnrecognised {
			want = firstPause << (n - maxUnrecognised)
		}
		if pause != want {
			t.Errorf("the pause after %d is %s, want %s", n, pause, want)
		}
	}
	if pause, err := i.read(false, numbered(8), now.Add(firstPause<<5)); err != nil || pause > 0 {
		t.Errorf("the pause has not ended: %s, %v", pause, err)
	}
}

// Somebody takes the rules away, sooner or later: that is a fight, and the inserts go on at once.
func TestInsertsThatGoAgainGoOn(t *testing.T) {
	var i inserts
	now := time.Now()
	for n := range 10_000 {
		i.made(1, true)
		// His own rules name the endpoint too, more of them each time, and each time they are new ones.
		his := map[string]bool{}
		for k := range n%50 + 3 {
			his[fmt.Sprintf("round %d rule %d", n, k)] = true
		}
		if _, err := i.read(false, his, now); err != nil {
			t.Fatalf("insert %d ends the inserts: %v", n+1, err)
		}
	}
	_ = pile(&i, 5, now)
	if _, err := i.read(false, numbered(0), now); err != nil {
		t.Errorf("what had piled up was taken away, and the inserts don't go on: %v", err)
	}
}

// Rules that can't be told from unrecognised inserts of our own are, as soon as there are more of them without an insert.
func TestOthersRulesEndThePause(t *testing.T) {
	var i inserts
	now := time.Now()
	if err := pile(&i, 5, now); err == nil {
		t.Fatal("no pause; then this test proves nothing")
	}
	if _, err := i.read(false, numbered(6), now); err != nil {
		t.Errorf("a rule that nobody here inserted did not end the pause: %v", err)
	}
}

// One insert of several rules counts as so many, and never as more.
func TestInsertsOfSeveralRules(t *testing.T) {
	var i inserts
	i.made(2, true)
	if _, err := i.read(false, numbered(2), time.Now()); err != nil {
		t.Errorf("two rules: %v", err)
	}
	i.made(2, true)
	if _, err := i.read(false, numbered(4), time.Now()); err == nil {
		t.Error("four rules, and no pause")
	}
	i = inserts{}
	i.made(1, true)
	if _, err := i.read(false, numbered(10), time.Now()); err != nil {
		t.Errorf("one of ours among ten that came: %v", err)
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
		if b.add(place(NFT), []Rule{rule}, c.counters([]Rule{rule})); b.total != want {
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
	b.restart(place(NFT)) // our own transaction
	look(24, 2)
}

// What is still open decides who is asked first: a rule of ours may be in the chain without being recognised.
func TestOpenInserts(t *testing.T) {
	now := time.Now()
	var i inserts
	if i.open() {
		t.Error("open at first")
	}
	for _, step := range []struct {
		name       string
		made       int
		recognised bool
		named      int
		open       bool
	}{
		{"somebody's rules are there", 0, false, 2, false},
		{"one more of his", 0, false, 3, false},
		{"ours came", 1, false, 4, true},
		{"it is still there", 0, false, 4, true},
		{"it went again", 0, false, 3, false},
		{"an insert of which nothing came", 1, false, 3, false},
		{"ours came again", 2, false, 4, true},
		{"and was recognised", 0, true, 4, false},
		{"what was there then has not come with an insert", 1, false, 4, false},
	} {
		if step.made > 0 {
			if i.made(step.made, true); !i.open() {
				t.Errorf("%s: an insert just made is not open", step.name)
			}
		}
		_, _ = i.read(step.recognised, numbered(step.named), now)
		if i.open() != step.open {
			t.Errorf("%s: open %t", step.name, i.open())
		}
	}
}

// Of an insert of several rules, no more count than appeared with it.
func TestInsertOfWhichLessCame(t *testing.T) {
	var i inserts
	now := time.Now()
	for n := 1; n <= maxUnrecognised; n++ {
		i.made(2, true)
		if _, err := i.read(false, numbered(n), now); (err != nil) != (n == maxUnrecognised) {
			t.Errorf("after %d inserts of two rules, of each of which one came: %v", n, err)
		}
	}
}

package rules

import "testing"

// inserted plays an insert and the reading after it.
func (i *inserts) inserted(seen bool, lines int) error {
	i.made()
	return i.read(seen, lines)
}

func TestInsertsThatMakeTheChainLonger(t *testing.T) {
	i := inserts{lines: 5}
	for n := range maxGrown {
		if err := i.allowed(); err != nil {
			t.Fatalf("insert %d is refused: %v", n+1, err)
		}
		_ = i.inserted(false, 6+n)
	}
	if i.allowed() == nil {
		t.Error("inserts go on although each made the chain longer")
	}
	if err := i.read(true, 9); err != nil || i.allowed() != nil {
		t.Errorf("inserts stay refused after a reading that shows the rule: %v", err)
	}
}

// Somebody deletes the rule each time before it is read back, in a chain with rules of others: that is a fight, not a bad
// reading, also where iptables did not list the chain before the insert.
func TestInsertsThatSomebodyUndoes(t *testing.T) {
	for _, before := range []int{7, unlisted} {
		i := inserts{lines: 7}
		for n := range maxUnseen - 1 {
			_ = i.read(false, before)
			if err := i.inserted(false, 7); err != nil {
				t.Fatalf("insert %d ends the inserts: %v", n+1, err)
			}
		}
		if i.inserted(false, 7) == nil {
			t.Errorf("inserts go on after %d that were not seen", maxUnseen)
		}
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

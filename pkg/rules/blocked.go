// The count of packets that the rules stopped, over the life of many copies of them.
package rules

// blocked adds up the kernel's packet counters, which start at zero again whenever a rule is put in again. It never goes
// back, and rather misses a packet than counts one twice.
type blocked struct {
	total uint64
	last  map[Rule]counted
}

// counted is the state of a rule's counters at the last look.
type counted struct {
	packets uint64
	copies  int
}

// add takes the counters of a fresh reading.
func (b *blocked) add(want []Rule, c Chain) {
	now := make(map[Rule]counted, len(want))
	for _, l := range c.Lines {
		if l.Exact {
			n := now[l.Rule]
			now[l.Rule] = counted{n.packets + l.Packets, n.copies + 1}
		}
	}
	for _, r := range want {
		before, after := b.last[r], now[r]
		switch {
		case after.packets >= before.packets:
			b.total += after.packets - before.packets
		case after.copies >= before.copies:
			b.total += after.packets // the rule was put in again, or its counter was zeroed
		}
	}
	b.last = now
}

// restart notes that the rules were put in anew, with counters at zero.
func (b *blocked) restart() { b.last = nil }

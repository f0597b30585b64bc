// The count of packets that the rules stopped, over the life of many copies of them.

package rules

import "slices"

// blocked adds up the kernel's packet counters, which start at zero again whenever a rule is put in again. It never goes
// back, and rather misses a packet than counts one twice.
type blocked struct {
	total uint64
	last  map[place]map[Rule]counted
}

// place is a chain that may hold the rules: FORWARD of a backend, by its name, or the one in our own table. Rules and counters
// in one stay while another is read.
type place string

// counted is the state of a rule's counters at the last look.
type counted struct {
	packets uint64
	copies  int
}

// add takes the counters of a fresh reading.
func (b *blocked) add(at place, want []Rule, now map[Rule]counted) {
	for _, r := range want {
		before, after := b.last[at][r], now[r]
		switch {
		case after.packets >= before.packets:
			b.total += after.packets - before.packets
		case after.copies >= before.copies:
			b.total += after.packets // the rule was put in again, or its counter was zeroed
		}
	}
	if b.last == nil {
		b.last = map[place]map[Rule]counted{}
	}
	b.last[at] = now
}

// counters are those of the wanted rules, as iptables prints them.
func (c Chain) counters(want []Rule) map[Rule]counted {
	now := make(map[Rule]counted, len(want))
	for _, l := range c.Lines {
		if l.Exact && slices.Contains(want, l.Rule) {
			n := now[l.Rule]
			now[l.Rule] = counted{n.packets + l.Packets, n.copies + 1}
		}
	}
	return now
}

// counters are the same as the kernel has them.
func (k kernelChain) counters() map[Rule]counted {
	now := make(map[Rule]counted, len(k.want))
	for r, copies := range k.copies {
		for _, copy := range copies {
			n := now[r]
			now[r] = counted{n.packets + copy.Packets, n.copies + 1}
		}
	}
	return now
}

// restart notes that the rules were put in anew, with counters at zero.
func (b *blocked) restart(at place) { delete(b.last, at) }

// Counting the packets that the rules stopped, across many copies of the rules.

package rules

import "slices"

// blocked adds up the kernel's packet counters, which restart at zero whenever a rule is inserted again. The sum never
// decreases; it may miss a packet, but never counts one twice.
type blocked struct {
	total uint64
	last  map[place]map[Rule]counted
}

// place is a chain that may hold the rules: FORWARD of a backend, under the backend's name, or the chain in our own table.
// Rules and counters in one persist while another is read.
type place string

// counted is the state of a rule's counters at the last look.
type counted struct {
	packets uint64
	copies  int
}

// add takes in the counters of a new reading.
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

// counters returns the counters of the wanted rules, as printed by iptables.
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

// counters returns the counters of the wanted rules, as read from the kernel.
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

// restart notes that the rules were inserted again, with counters at zero.
func (b *blocked) restart(at place) { delete(b.last, at) }

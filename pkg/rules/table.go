// One family's rules, kept at the top of FORWARD.
package rules

import (
	"errors"
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// LayerName is the name of this way of enforcing, as a metric label.
const LayerName = "iptables"

// Table keeps the rules of one family at the top of FORWARD. Read looks, Repair mends what the last Read found; neither
// touches a rule that is not one of the wanted ones.
//
// A bad reading can't make it insert without bound: inserts that no reading shows are counted, and after a few it
// inserts no more (see inserts).
type Table struct {
	family   enforce.Family
	want     []Rule
	selector *Selector

	copies        map[Rule]int // of each wanted rule, found by the last Read
	lost          []Rule       // the wanted rules that the kernel lacks, where the last look did without iptables' list
	counted       int          // the kernel's count of rules by the last Lost, uncounted if a Read came after it
	shownByKernel bool         // the last Read could not list the chain, and the kernel lacks none of the wanted rules

	known    map[Rule]netfilter.NFTRule // the wanted rules as nftables had them when all was right; empty before
	distrust bool                       // the kernel's own list was misunderstood once, and is not followed any more
	inserts  inserts
	blocked  blocked
}

// NewTable makes the keeper of one family's rules. All families share the selector.
func NewTable(f enforce.Family, want []Rule, s *Selector) *Table {
	return &Table{family: f, want: want, selector: s}
}

// Family is the address family.
func (t *Table) Family() enforce.Family { return t.family }

// Layer implements guard.Layer.
func (t *Table) Layer() string { return LayerName }

// Read looks at the chain and changes nothing.
func (t *Table) Read() enforce.Reading {
	r := t.read()
	r.Blocked = t.blocked.total
	return r
}

func (t *Table) read() enforce.Reading {
	t.copies, t.lost, t.counted, t.shownByKernel = nil, nil, uncounted, false
	chain, err := t.readChain()
	var absent errAbsent
	if errors.As(err, &absent) {
		t.lost = absent.rules
		return t.checkInserts(enforce.Reading{State: enforce.Missing, Detail: err.Error()}, lacking)
	}
	if err != nil {
		if detail, yes := unsupported(t.family, err); yes {
			return enforce.Reading{State: enforce.Unsupported, Detail: detail}
		}
		sight := unseen
		if t.shownByKernel {
			sight = shown
		}
		return t.checkInserts(enforce.Reading{State: enforce.Unknown, Detail: err.Error(), Err: err}, sight)
	}
	t.copies = chain.Copies(t.want)
	t.blocked.add(t.want, chain)
	state, detail := Compare(t.want, chain)
	reading := enforce.Reading{State: state, Detail: detail}
	for _, rule := range t.want {
		if t.copies[rule] > 0 {
			reading.Rules = append(reading.Rules, rule.String())
		}
	}
	if state == enforce.Missing {
		return t.checkInserts(reading, lacking)
	}
	return t.checkInserts(reading, shown)
}

// checkInserts turns a reading into Unknown if it contradicts what was inserted too often.
func (t *Table) checkInserts(r enforce.Reading, s sight) enforce.Reading {
	if err := t.inserts.read(s, t.count, time.Now()); err != nil {
		r.State, r.Detail, r.Err = enforce.Unknown, err.Error(), err
	}
	return r
}

// Repair puts the wanted rules at the top, once each, as the last Read or Lost found them: what is missing by an insert, all
// else by one transaction that never leaves a moment without a rule that is there. If the chain has changed since, the
// transaction does nothing and fails; the next Read will tell.
func (t *Table) Repair() error {
	if err := t.inserts.allowed(time.Now()); err != nil {
		return err
	}
	missing := t.lost
	if len(missing) == 0 {
		missing = slices.DeleteFunc(slices.Clone(t.want), func(r Rule) bool { return t.copies[r] > 0 })
	}
	if len(missing) > 0 {
		if t.counted == uncounted {
			t.counted = t.count()
		}
		t.inserts.made(t.counted)
	}
	if len(t.lost) > 0 && t.putBack() {
		return nil
	}
	c, err := t.selector.command(t.family)
	if err != nil {
		return err
	}
	if len(t.lost) > 0 || len(missing) == 1 && len(t.want) == 1 {
		// -I works in a chain that iptables can't list, too. The last one inserted is the first in the chain.
		for _, r := range slices.Backward(missing) {
			if err := c.insert(r); err != nil {
				return err
			}
		}
		return nil
	}
	if err := c.replace(t.copies, t.want); err != nil {
		return err
	}
	t.blocked.restart()
	return nil
}

// putBack puts back what the kernel has lost, as the kernel had it, and reports whether that did.
func (t *Table) putBack() bool {
	var rules []netfilter.NFTRule
	for _, r := range t.lost {
		known, ok := t.known[r]
		if !ok {
			return false
		}
		rules = append(rules, known)
	}
	return t.selector.nft.PutBack(t.family, tableName, chainName, rules) == nil
}

func isIncompatible(err error) bool {
	var command *CommandError
	return errors.As(err, &command) && command.Reason == ReasonIncompatible
}

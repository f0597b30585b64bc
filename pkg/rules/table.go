// One family's rules, kept at the top of FORWARD.
package rules

import (
	"errors"
	"slices"

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

	copies   map[Rule]int          // of each wanted rule, found by the last Read
	unlisted bool                  // the last Read knows of a missing rule from the kernel, without iptables' list
	known    []netfilter.KnownRule // the wanted rules as nftables had them when all was right; empty before
	distrust bool                  // the kernel's own list was misunderstood once, and is not followed any more
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
	t.copies, t.unlisted = nil, false
	chain, err := t.readChain()
	if errors.As(err, new(errAbsent)) {
		t.unlisted = true
		return t.checkInserts(enforce.Reading{State: enforce.Missing, Detail: err.Error()}, unlisted)
	}
	if err != nil {
		if detail, yes := unsupported(t.family, err); yes {
			return enforce.Reading{State: enforce.Unsupported, Detail: detail}
		}
		return t.checkInserts(enforce.Reading{State: enforce.Unknown, Detail: err.Error(), Err: err}, unlisted)
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
	return t.checkInserts(reading, len(chain.Lines))
}

// checkInserts turns a reading into Unknown if it contradicts what was inserted too often.
func (t *Table) checkInserts(r enforce.Reading, lines int) enforce.Reading {
	if err := t.inserts.read(r.State != enforce.Missing, lines); err != nil {
		r.State, r.Detail, r.Err = enforce.Unknown, err.Error(), err
	}
	return r
}

// Repair puts the wanted rules at the top, once each, as the last Read or Lost found them: what is missing by an insert, all
// else by one transaction that never leaves a moment without a rule that is there. If the chain has changed since, the
// transaction does nothing and fails; the next Read will tell.
func (t *Table) Repair() error {
	if err := t.inserts.allowed(); err != nil {
		return err
	}
	missing := slices.ContainsFunc(t.want, func(r Rule) bool { return t.copies[r] == 0 })
	if missing {
		t.inserts.made()
	}
	if t.unlisted && len(t.known) > 0 && t.selector.nft.PutBack(t.family, tableName, chainName, t.known) == nil {
		return nil
	}
	c, err := t.selector.command(t.family)
	if err != nil {
		return err
	}
	if t.unlisted || missing && len(t.want) == 1 {
		// -I works in a chain that iptables can't list, too. The last one inserted is the first in the chain.
		for _, r := range slices.Backward(t.want) {
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

func isIncompatible(err error) bool {
	var command *CommandError
	return errors.As(err, &command) && command.Reason == ReasonIncompatible
}

// The reading of FORWARD, from iptables and, where iptables alone may be wrong, from the kernel as well.
package rules

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// errAbsent says that the kernel lacks a wanted rule, whatever iptables would say.
type errAbsent struct{ rule Rule }

func (e errAbsent) Error() string { return fmt.Sprintf("%q is not in the chain", e.rule) }

// readChain reads FORWARD through the current backend. For nft the kernel is asked first: iptables-nft omits or misprints
// rules that it did not write, and after somebody has deleted rules its exit waits for the kernel (see netfilter.NFT),
// which would hold up putting them back. Where the kernel has none of the wanted rules, or iptables can't list the chain
// and one is missing, the error is an errAbsent.
func (t *Table) readChain() (chain Chain, err error) {
	c, err := t.selector.command(t.family)
	if err != nil {
		return Chain{}, err
	}
	if t.selector.Current() == Legacy {
		// Listing a table would load it, and looking must change nothing. One that is not loaded has no rules.
		if tables, err := netfilter.LegacyTables(t.family); err == nil && !slices.Contains(tables, tableName) {
			return Chain{}, nil
		}
		return list(c)
	}
	// The two reads are not one: where somebody writes in between they differ, and are made again.
	for range 3 {
		var kernel netfilter.NFTChain
		if kernel, err = t.selector.nft.ReadChain(t.family, tableName, chainName); err != nil {
			return Chain{}, err
		}
		missing := t.absent(kernel.Rules)
		// After an insert iptables has its say first: should it show what the kernel's list seemed to lack, that list is
		// not understood, and must not be followed into another insert.
		if len(missing) == len(t.plain()) && !t.inserts.pending {
			return Chain{}, errAbsent{missing[0]}
		}
		if chain, err = list(c); err == nil {
			err = confirm(t.family, &chain, kernel)
		}
		if err == nil {
			t.distrust = t.distrust || len(chain.Copies(missing)) > 0
			if state, _ := Compare(t.want, chain); state == enforce.Enforced {
				t.remember(kernel)
			}
			return chain, nil
		}
		if len(missing) > 0 && isIncompatible(err) {
			return Chain{}, errAbsent{missing[0]}
		}
	}
	return Chain{}, err
}

// list reads and parses what iptables says of the chain.
func list(c *command) (Chain, error) {
	lines, err := c.list()
	if err != nil {
		return Chain{}, err
	}
	if len(lines) == 0 || !strings.HasPrefix(lines[0], "-P "+chainName+" ") {
		return Chain{}, &CommandError{Family: c.family, Operation: OpList, Reason: ReasonOther,
			Err: fmt.Errorf("its output does not start with the policy of %s", chainName)}
	}
	chain := Chain{Lines: make([]Line, 0, len(lines)-1)}
	for _, text := range lines[1:] {
		line, err := ParseLine(text)
		if err != nil {
			return Chain{}, &CommandError{Family: c.family, Operation: OpList, Reason: ReasonOther, Err: err}
		}
		chain.Lines = append(chain.Lines, line)
	}
	return chain, nil
}

// confirm holds what iptables-nft printed against what the kernel has.
func confirm(f enforce.Family, chain *Chain, kernel netfilter.NFTChain) error {
	wrong := ""
	switch {
	case kernel.Dormant:
		wrong = fmt.Sprintf("nftables table %s is dormant: its rules are there and are not evaluated", tableName)
	case kernel.Exists && !kernel.Hooked:
		wrong = fmt.Sprintf("nftables chain %s has no hook: no packet enters it", chainName)
	case len(chain.Lines) != len(kernel.Rules):
		wrong = fmt.Sprintf("the kernel has %d rules in %s, iptables lists %d", len(kernel.Rules), chainName, len(chain.Lines))
	}
	if wrong != "" {
		return &CommandError{Family: f, Operation: OpList, Reason: ReasonIncompatible, Err: errors.New(wrong)}
	}
	chain.Native = true
	for i, rule := range kernel.Rules {
		if rule.Odd {
			chain.Lines[i].Odd, chain.Lines[i].Exact = true, false
		}
	}
	return nil
}

// plain are the wanted rules that the kernel's own list is searched for: those that match on TCP are written with an
// xtables match, and each has a companion without.
func (t *Table) plain() []Rule {
	return slices.DeleteFunc(slices.Clone(t.want), func(r Rule) bool { return r.TCP })
}

// absent lists the wanted rules that the kernel does not have, by its own account.
func (t *Table) absent(there []netfilter.NFTRule) []Rule {
	if t.distrust {
		return nil
	}
	return slices.DeleteFunc(t.plain(), func(r Rule) bool {
		return slices.ContainsFunc(there, func(k netfilter.NFTRule) bool {
			return k.Plain && k.In == r.In && k.Dest == r.Dest.Addr() && k.Target == r.Target
		})
	})
}

// Lost implements guard.Layer. What it finds is for Repair to put back.
func (t *Table) Lost() bool {
	if t.selector.Current() != NFT || len(t.known) == 0 || t.inserts.pending {
		return false
	}
	there, err := t.selector.nft.ReadRules(t.family, tableName, chainName)
	if err != nil || len(t.absent(there)) < len(t.plain()) {
		return false
	}
	t.copies, t.unlisted = nil, true
	return true
}

// remember keeps the wanted rules as the kernel has them, which a later Repair can put back without a command.
func (t *Table) remember(kernel netfilter.NFTChain) {
	t.known = t.known[:0]
	for i, r := range t.want {
		t.known = append(t.known, netfilter.KnownRule{Expressions: kernel.Rules[i].Expressions, TCP: r.TCP})
	}
}

// hasIPv6 reports whether the kernel runs IPv6 at all; ipv6.disable=1 and a kernel without it both leave this out.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// forwardsIPv6 reports whether packets of pods can cross the node by IPv6. What can't be read counts as yes.
func forwardsIPv6() bool {
	value, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
	return err != nil || strings.TrimSpace(string(value)) != "0"
}

// unsupported reports whether there is nothing to enforce in a family, err being why its chain could not be read.
func unsupported(f enforce.Family, err error) (detail string, yes bool) {
	switch {
	case f != enforce.IPv6:
		return "", false
	case !hasIPv6():
		return "the kernel runs without IPv6", true
	case withoutNetfilter(err) && !forwardsIPv6():
		return "the kernel has no IPv6 netfilter, and forwards no IPv6", true
	}
	return "", false
}

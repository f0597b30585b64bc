// The reading of FORWARD, from iptables and, where iptables alone may be wrong, from the kernel as well.
package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// errAbsent says that the kernel lacks wanted rules, whatever iptables would say.
type errAbsent struct{ rules []Rule }

func (e errAbsent) Error() string { return fmt.Sprintf("%q is not in the chain", e.rules[0]) }

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
		if len(missing) == len(t.want) && !t.inserts.pending {
			return Chain{}, errAbsent{missing}
		}
		chain, err = list(c)
		if err != nil && !isIncompatible(err) {
			return Chain{}, err
		}
		if err == nil {
			err = confirm(t.family, t.want, &chain, kernel)
		}
		if err == nil {
			t.learn(chain, kernel.Rules, missing)
			return chain, nil
		}
		if len(missing) > 0 {
			return Chain{}, errAbsent{missing}
		}
		t.shownByKernel = !t.distrust
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
func confirm(f enforce.Family, ours []Rule, chain *Chain, kernel netfilter.NFTChain) error {
	switch {
	case kernel.Dormant:
		return unconfirmed(f, "nftables table %s is dormant: its rules are there and are not evaluated", tableName)
	case kernel.Exists && !kernel.Hooked:
		return unconfirmed(f, "nftables chain %s has no hook: no packet enters it", chainName)
	}
	return markOdd(f, ours, chain, kernel.Rules)
}

// markOdd marks the lines that iptables-nft can't be believed about. It is an error if one of them is printed as a rule of
// ours: `iptables -D` would take it for ours as well, and delete it in the place of ours.
func markOdd(f enforce.Family, ours []Rule, chain *Chain, there []netfilter.NFTRule) error {
	if len(chain.Lines) != len(there) {
		return unconfirmed(f, "the kernel has %d rules in %s, iptables lists %d", len(there), chainName, len(chain.Lines))
	}
	chain.Native = true
	for i, rule := range there {
		l := &chain.Lines[i]
		if rule.Odd && l.Exact && slices.Contains(ours, l.Rule) {
			return unconfirmed(f, "rule %d of %s is a native nftables rule that iptables takes for one of ours (%q)", i+1, chainName, l.Text)
		}
		if rule.Odd {
			l.Odd, l.Exact = true, false
		}
	}
	return nil
}

func unconfirmed(f enforce.Family, format string, args ...any) error {
	return &CommandError{Family: f, Operation: OpList, Reason: ReasonIncompatible, Err: fmt.Errorf(format, args...)}
}

// isRule reports whether what the kernel has is this rule, as far as the kernel's list is read.
func isRule(k netfilter.NFTRule, r Rule) bool {
	return k.Plain && k.In == r.In && k.Dest == r.Dest.Addr() && k.TCP == r.TCP && k.Target == r.Target
}

// absent lists the wanted rules that the kernel does not have, by its own account.
func (t *Table) absent(there []netfilter.NFTRule) []Rule {
	if t.distrust {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(t.want), func(r Rule) bool {
		return slices.ContainsFunc(there, func(k netfilter.NFTRule) bool { return isRule(k, r) })
	})
}

// learn takes from a reading that iptables and the kernel agree on what later ones are judged by: whether the kernel's list
// is understood, and the wanted rules as the kernel has them, which Repair can put back without a command.
func (t *Table) learn(chain Chain, there []netfilter.NFTRule, missing []Rule) {
	if len(chain.Copies(missing)) > 0 {
		// iptables shows what the kernel's list lacked. If a second look lacks it too, nobody has just written it.
		again, err := t.selector.nft.ReadRules(t.family, tableName, chainName)
		t.distrust = err == nil && len(t.absent(again)) > 0
		return
	}
	if state, _ := Compare(t.want, chain); state != enforce.Enforced {
		return
	}
	known := make(map[Rule]netfilter.NFTRule, len(t.want))
	for i, r := range t.want {
		if !isRule(there[i], r) {
			return // somebody has moved rules between the two reads
		}
		known[r] = there[i]
	}
	t.known = known
}

// Lost implements guard.Layer. What it finds is for Repair to put back.
func (t *Table) Lost() bool {
	if t.selector.Current() != NFT || len(t.known) == 0 || t.inserts.pending {
		return false
	}
	there, err := t.selector.nft.ReadRules(t.family, tableName, chainName)
	if err != nil {
		return false
	}
	t.copies, t.lost, t.counted = nil, t.absent(there), len(there)
	return len(t.lost) > 0
}

// count is the kernel's own count of the rules among which ours are, uncounted if it can't be had.
func (t *Table) count() int {
	if t.selector.Current() == NFT {
		if there, err := t.selector.nft.ReadRules(t.family, tableName, chainName); err == nil {
			return len(there)
		}
		return uncounted
	}
	if info, _, err := netfilter.ReadLegacyInfo(t.family, tableName); err == nil {
		return int(info.Entries)
	}
	return uncounted
}

// hasIPv6 reports whether the kernel runs IPv6 at all; ipv6.disable=1 and a kernel without it both leave this out.
func hasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// forwardsIPv6 reports whether packets of pods can cross the node by IPv6, which is decided for each interface that they
// come in by. What can't be read counts as yes.
func forwardsIPv6() bool {
	files, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/*forwarding") // forwarding, mc_forwarding, force_forwarding
	return len(files) == 0 || slices.ContainsFunc(files, func(file string) bool {
		value, err := os.ReadFile(file)
		return err != nil || strings.TrimSpace(string(value)) != "0"
	})
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

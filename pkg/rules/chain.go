// The reading of FORWARD, from iptables and, where iptables alone may be wrong, from the kernel as well.
package rules

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// readChain reads FORWARD through the current backend. For nft the kernel is read as well: iptables-nft omits or misprints
// rules that it did not write. kernel is what nftables said, also where iptables could not show the chain.
func (t *Table) readChain() (chain Chain, kernel netfilter.NFTChain, err error) {
	c, err := t.selector.command(t.family)
	if err != nil {
		return Chain{}, kernel, err
	}
	if t.selector.Current() == Legacy {
		// Listing a table would load it, and looking must change nothing. One that is not loaded has no rules.
		if tables, err := netfilter.LegacyTables(t.family); err == nil && !slices.Contains(tables, tableName) {
			return Chain{}, kernel, nil
		}
		chain, err = list(c)
		return chain, kernel, err
	}
	// The two reads are not one: where somebody writes in between they differ, and are made again.
	for range 3 {
		if kernel, err = netfilter.ReadNFTChain(t.family, tableName, chainName); err != nil {
			return Chain{}, kernel, err
		}
		if chain, err = list(c); err != nil {
			return Chain{}, kernel, err
		}
		if err = confirm(&chain, kernel); err == nil {
			break
		}
	}
	if err != nil {
		err = &CommandError{Family: t.family, Operation: OpList, Reason: ReasonIncompatible, Err: err}
	}
	return chain, kernel, err
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
func confirm(chain *Chain, kernel netfilter.NFTChain) error {
	switch {
	case kernel.Dormant:
		return fmt.Errorf("nftables table %s is dormant: its rules are there and are not evaluated", tableName)
	case kernel.Exists && !kernel.Hooked:
		return fmt.Errorf("nftables chain %s has no hook: no packet enters it", chainName)
	case len(chain.Lines) != len(kernel.Rules):
		return fmt.Errorf("the kernel has %d rules in %s, iptables lists %d", len(kernel.Rules), chainName, len(chain.Lines))
	}
	chain.Native = true
	for i, rule := range kernel.Rules {
		if rule.Odd {
			chain.Lines[i].Odd, chain.Lines[i].Exact = true, false
		}
	}
	return nil
}

// absent finds a wanted rule that the kernel does not have, for when iptables can't tell. Rules that match on TCP are
// not looked for: iptables writes them with an xtables match, and each has a companion without.
func absent(want []Rule, kernel netfilter.NFTChain) (rule Rule, found bool) {
	there := map[Rule]bool{}
	for _, k := range kernel.Rules {
		if k.Plain {
			there[Rule{Dest: netip.PrefixFrom(k.Dest, k.Dest.BitLen()), In: k.In, Target: k.Target}] = true
		}
	}
	for _, r := range want {
		plain := r
		plain.RejectWith = ""
		if !r.TCP && !there[plain] {
			return r, true
		}
	}
	return Rule{}, false
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

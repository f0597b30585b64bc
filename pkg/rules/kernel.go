// Comparing the kernel's own list of FORWARD (nft) with the wanted rules.

package rules

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// maxListed is how many rules FORWARD may have for iptables to be asked to list them, and how many above ours are examined. For
// a longer chain the top of the kernel's list alone decides: iptables-nft would read and print all of it, and would have to
// start over each time any table is written to.
const maxListed = 512

// kernelChain is the kernel's view of the wanted rules.
type kernelChain struct {
	netfilter.NFTChain
	want []Rule
	// copies has the copies of each wanted rule, from the top; a rule that is not there has no entry.
	copies map[Rule][]netfilter.NFTRule
}

// isRule reports whether a kernel rule is this rule.
func isRule(k netfilter.NFTRule, r Rule) bool {
	return k.Plain && k.In == r.In && k.Dest == r.Dest.Addr() && k.TCP == r.TCP && k.Target == r.Target &&
		(r.RejectWith == "" || k.RejectWith == r.RejectWith)
}

// readKernel reads only as much of a chain as is needed to decide whether the wanted rules are in force. read is forward.Kernel
// or forward.OwnKernel.
func readKernel(read func(netfilter.Scope) (netfilter.NFTChain, error), endpoint netip.Addr, want []Rule) (kernelChain, error) {
	open := slices.Clone(want)
	c, err := read(netfilter.Scope{Address: endpoint, Top: maxListed, Enough: func(k netfilter.NFTRule) bool {
		open = slices.DeleteFunc(open, func(r Rule) bool { return isRule(k, r) })
		return len(open) == 0
	}})
	if err != nil {
		return kernelChain{}, err
	}
	k := kernelChain{NFTChain: c, want: want, copies: map[Rule][]netfilter.NFTRule{}}
	for _, rule := range c.Rules() {
		for _, r := range want {
			if isRule(rule, r) {
				k.copies[r] = append(k.copies[r], rule)
			}
		}
	}
	return k, nil
}

// missing lists the missing rules.
func (k kernelChain) missing() (rules []Rule) {
	for _, r := range k.want {
		if len(k.copies[r]) == 0 {
			rules = append(rules, r)
		}
	}
	return rules
}

// copyCounts counts the copies of each wanted rule.
func (k kernelChain) copyCounts() map[Rule]int {
	counts := make(map[Rule]int, len(k.copies))
	for r, copies := range k.copies {
		counts[r] = len(copies)
	}
	return counts
}

// inPlace reports whether the chain begins with the wanted rules, in order. If so, what is below them no longer matters: none
// of their packets gets there.
func (k kernelChain) inPlace() bool {
	for i, r := range k.want {
		if copies := k.copies[r]; len(copies) == 0 || copies[0].Position != i {
			return false
		}
	}
	return true
}

// named returns the handles of the rules that name the endpoint but are none of the wanted ones. A rule that is understood and
// stops nothing can't be one of ours in disguise.
func (k kernelChain) named() map[string]bool {
	named, ours := map[string]bool{}, k.ours()
	for _, rule := range k.Rules() {
		if rule.Names && (rule.Odd || rule.Stops) && !ours[rule.Handle] {
			named[strconv.FormatUint(rule.Handle, 10)] = true
		}
	}
	return named
}

// handles returns the handles of the copies of the wanted rules, rule by rule and from the top.
func (k kernelChain) handles() (handles []uint64) {
	for _, r := range k.want {
		for _, c := range k.copies[r] {
			handles = append(handles, c.Handle)
		}
	}
	return handles
}

// ours returns the handles as a set.
func (k kernelChain) ours() map[uint64]bool {
	ours := map[uint64]bool{}
	for _, handle := range k.handles() {
		ours[handle] = true
	}
	return ours
}

// sameAs reports whether two readings, for the same wanted rules, found the same rules in the same places, by their handles.
func (k kernelChain) sameAs(other kernelChain) bool {
	same := func(a, b netfilter.NFTRule) bool { return a.Handle == b.Handle && a.Position == b.Position }
	return slices.Equal(k.want, other.want) && k.Exists == other.Exists && k.Dormant == other.Dormant && k.Type == other.Type &&
		k.Hook == other.Hook && k.Length == other.Length && slices.EqualFunc(k.Rules(), other.Rules(), same)
}

// useless says why the chain's rules have no effect, wherever they are in it; empty if they have.
func (k kernelChain) useless() string {
	works := !k.Dormant && k.Type == "filter" && k.Hook == unix.NF_INET_FORWARD
	if !k.Exists || works {
		return ""
	}
	remedy := fmt.Sprintf("; `nft delete chain %s %s %s`, and imds-guard will recreate it", nftFamily(k.want), tableName, chainName)
	switch {
	case k.Dormant:
		return fmt.Sprintf("nftables table %s is dormant: its rules exist but are not evaluated; "+
			"`nft add table %s %s` wakes it", tableName, nftFamily(k.want), tableName)
	case k.Type == "":
		return fmt.Sprintf("nftables chain %s has no hook: no packet enters it", chainName) + remedy
	}
	return fmt.Sprintf("nftables chain %s is of type %s at hook %s: it does not see forwarded packets as a filter/forward chain does",
		chainName, k.Type, hookName(k.Hook)) + remedy
}

func nftFamily(want []Rule) string {
	if len(want) > 0 && want[0].Dest.Addr().Is6() {
		return "ip6"
	}
	return "ip"
}

// hookName returns the name of a hook (linux/netfilter.h, enum nf_inet_hooks) as nft writes it.
func hookName(hook uint32) string {
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	if int(hook) < len(names) {
		return names[hook]
	}
	return strconv.Itoa(int(hook))
}

// state judges by the kernel's list alone; why says why iptables was not consulted. A rule above ours counts as harmless only
// if all it can do is stop packets.
func (k kernelChain) state(why error) (state layer.State, detail string) {
	if missing := k.missing(); len(missing) > 0 {
		return layer.Missing, fmt.Sprintf("%q is not in the chain", missing[0])
	}
	ours := k.ours()
	for _, r := range k.want {
		first := k.copies[r][0].Position
		if first > len(k.Top) {
			return Shadowed, fmt.Sprintf("more than %d rules stand above %q", len(k.Top), r)
		}
		for _, above := range k.Top[:min(first, len(k.Top))] {
			if !above.Stops && !ours[above.Handle] {
				return Shadowed, fmt.Sprintf("rule %d, handle %d, stands above %q, and iptables did not list what it does: %v",
					above.Position+1, above.Handle, r, why)
			}
		}
	}
	for _, r := range k.want {
		if n := len(k.copies[r]); n > 1 {
			return Duplicate, fmt.Sprintf("%q is in the chain %d times", r, n)
		}
	}
	if !k.inPlace() {
		return Displaced, fmt.Sprintf("%q is not in its place at the top", k.want[0])
	}
	return layer.Enforced, fmt.Sprintf("by the kernel's own list alone: %v", why)
}

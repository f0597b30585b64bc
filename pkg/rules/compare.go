// Comparing the wanted rules with the actual chain.

package rules

import (
	"fmt"
	"slices"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// Chain is FORWARD as it was read, from top to bottom.
type Chain struct {
	Lines []Line
	// Native says that the chain may contain native nftables rules, so that a line without a target may still end the walk:
	// iptables-nft prints a verdict map without a target.
	Native bool
}

// Copies counts how often each of these rules is in the chain; rules that are not in it have no entry.
func (c Chain) Copies(of []Rule) map[Rule]int {
	copies := make(map[Rule]int, len(of))
	for _, l := range c.Lines {
		if l.Exact && slices.Contains(of, l.Rule) {
			copies[l.Rule]++
		}
	}
	return copies
}

// Compare says how the chain differs from one that has the wanted rules at its top, once each and in order. The state is the
// worst thing it finds, and the detail names the rule responsible.
func Compare(want []Rule, c Chain) (state layer.State, detail string) {
	copies := c.Copies(want)
	for _, r := range want {
		if copies[r] == 0 {
			return layer.Missing, fmt.Sprintf("%q is not in the chain", r)
		}
	}
	if detail := c.shadow(want); detail != "" {
		return Shadowed, detail
	}
	for _, r := range want {
		if copies[r] > 1 {
			return Duplicate, fmt.Sprintf("%q is in the chain %d times", r, copies[r])
		}
	}
	for i, r := range want {
		if above := c.Lines[i]; !above.Exact || above.Rule != r {
			return Displaced, fmt.Sprintf("%q stands where %q belongs%s", above.Text, r, above.twin(want))
		}
	}
	return layer.Enforced, ""
}

// twin says what to do about a line that looks like ours but is none of the wanted rules: another imds-guard may have put it
// there.
func (l Line) twin(want []Rule) string {
	form := l.Exact && l.Rule.In != "" && l.Rule.Dest == want[0].Dest && (l.Rule.Target == "DROP" || l.Rule.Target == "REJECT")
	if !form || slices.Contains(want, l.Rule) {
		return ""
	}
	return "; if another imds-guard put it there, the two will fight forever: give both the same flags, or stop one"
}

// shadow looks for a line above the first copy of a wanted rule that may let through a packet which that rule should stop.
func (c Chain) shadow(want []Rule) (detail string) {
	for _, r := range want {
		for _, l := range c.Lines {
			if l.Exact && l.Rule == r {
				break
			}
			if l.Odd || l.mayEndWalk(c.Native) && l.mayMatch(r) {
				return fmt.Sprintf("%q stands above %q", l.Text, r)
			}
		}
	}
	return ""
}

// goesOn lists the targets after which the walk continues with the next rule, whatever their options (iptables-extensions(8)).
// iptables -N refuses to create chains with these names, nft doesn't: see Line.Jump. TEE is not on the list: the copy that it
// makes leaves the node through OUTPUT.
var goesOn = map[string]bool{
	"AUDIT": true, "CHECKSUM": true, "CLASSIFY": true, "CONNMARK": true, "CONNSECMARK": true, "DSCP": true, "ECN": true,
	"HL": true, "HMARK": true, "IDLETIMER": true, "LED": true, "LOG": true, "MARK": true, "NFLOG": true, "RATEEST": true,
	"SECMARK": true, "SET": true, "TCPMSS": true, "TCPOPTSTRIP": true, "TOS": true, "TRACE": true,
	"TTL": true, "ULOG": true,
}

// mayEndWalk reports whether a packet that matches the line may leave the chain alive. A jump counts, because the other chain
// can change without any change in FORWARD. DROP and REJECT end the walk too, but in our favour.
func (l Line) mayEndWalk(native bool) bool {
	switch t := l.Rule.Target; {
	case l.Jump:
		return true
	case t == "DROP", t == "REJECT":
		return false
	case t == "":
		return native
	default:
		return !goesOn[t]
	}
}

// mayMatch reports whether some packet that matches r may match the line too. Only destination and input interface can rule
// that out; anything else that the line requires may be true of the packet.
func (l Line) mayMatch(r Rule) bool {
	if d := l.Rule.Dest; d.IsValid() && d.Contains(r.Dest.Addr()) == l.DestNot {
		return false
	}
	if in := l.Rule.In; in != "" {
		if l.InNot {
			return !ifpattern.Within(r.In, in)
		}
		return ifpattern.Overlap(r.In, in)
	}
	return true
}

// Package rules is the iptables layer: it knows which rules are wanted, reads which are there, says how the two differ,
// and mends the difference.
//
// Nothing here is safe for concurrent use: one goroutine owns the rules (package guard), and it alone calls Table and
// Selector. Forked commands inherit the network namespace of the calling thread.
package rules

import (
	"net/netip"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// Verdict is what happens to a pod's packet to the endpoint.
type Verdict string

const (
	// Drop says nothing to the sender: a client hangs until its own time-out.
	Drop Verdict = "drop"
	// Reject answers TCP by a reset, which no rate limit touches, and the rest by an ICMP error.
	Reject Verdict = "reject"
)

// Verdicts lists every verdict.
var Verdicts = []Verdict{Drop, Reject}

// The place of the rules. FORWARD, because a packet from a pod is forwarded by the node, and because a Service may have
// the IPv6 endpoint as its backend: after DNAT such a packet crosses FORWARD with the endpoint's address, whereas
// PREROUTING saw the Service's.
const (
	tableName = "filter"
	chainName = "FORWARD"
)

// Rule is one rule as imds-guard writes it. It is comparable: two rules are the same to the kernel exactly if they are
// equal. It has no comment match, since that match may be missing on a fresh node (awslabs/amazon-eks-ami#2605) and since
// `iptables -C FORWARD -i eni+ -d 169.254.169.254/32 -j DROP` typed by an admin has to find it.
type Rule struct {
	Dest       netip.Prefix
	In         string // an ifpattern.Pattern's text
	TCP        bool
	Target     string
	RejectWith string
}

// Args are the arguments that follow `iptables -I FORWARD 1`, in the order in which iptables prints them.
func (r Rule) Args() []string {
	args := []string{"-d", r.Dest.String(), "-i", r.In}
	if r.TCP {
		args = append(args, "-p", "tcp")
	}
	args = append(args, "-j", r.Target)
	if r.RejectWith != "" {
		args = append(args, "--reject-with", r.RejectWith)
	}
	return args
}

// String is the rule in iptables-save form.
func (r Rule) String() string { return "-A " + chainName + " " + strings.Join(r.Args(), " ") }

// Desired returns the rules wanted for a family, in the order in which they belong at the top of FORWARD.
func Desired(f enforce.Family, patterns []ifpattern.Pattern, v Verdict) []Rule {
	var rules []Rule
	for _, p := range patterns {
		r := Rule{Dest: f.Endpoint(), In: p.String(), Target: "DROP"}
		if v == Reject {
			r.Target, r.RejectWith = "REJECT", icmpError(f)
			tcp := r
			tcp.TCP, tcp.RejectWith = true, "tcp-reset"
			rules = append(rules, tcp)
		}
		rules = append(rules, r)
	}
	return rules
}

// icmpError is the error that REJECT sends by default; iptables always prints it, so it is always written.
func icmpError(f enforce.Family) string {
	if f == enforce.IPv6 {
		return "icmp6-port-unreachable"
	}
	return "icmp-port-unreachable"
}

// Format writes the rules of one family as a block that iptables-restore --noflush takes.
func Format(rules []Rule) string {
	var b strings.Builder
	b.WriteString("*" + tableName + "\n")
	for _, r := range rules {
		b.WriteString(r.String() + "\n")
	}
	b.WriteString("COMMIT\n")
	return b.String()
}

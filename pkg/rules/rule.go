// The rules, and which ones a policy requires.

package rules

import (
	"net/netip"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// The place of the rules: FORWARD, because the node forwards pods' packets, and because a Service may have the IPv6 endpoint as
// its backend. After DNAT such a packet crosses FORWARD with the endpoint's address, whereas PREROUTING saw the Service's.
const (
	tableName = "filter"
	chainName = "FORWARD"
)

// Rule is one rule as imds-guard writes it. It is comparable: two rules are the same to the kernel exactly if they are equal.
// It has no comment match, since that match may be missing on a fresh node (awslabs/amazon-eks-ami#2605), and since `iptables
// -C FORWARD -i eni+ -d 169.254.169.254/32 -j DROP`, typed by an admin, has to find it.
type Rule struct {
	Dest       netip.Prefix
	In         string // an ifpattern.Pattern's text
	TCP        bool
	Target     string
	RejectWith string
}

// Args returns the arguments that follow `iptables -I FORWARD 1`, in the order in which iptables prints them.
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

// String returns the rule in iptables-save form.
func (r Rule) String() string { return "-A " + chainName + " " + strings.Join(r.Args(), " ") }

// Desired returns the rules wanted for a family, in the order in which they belong at the top of FORWARD.
func Desired(f imds.Family, p policy.Policy) []Rule {
	var rules []Rule
	for _, in := range p.Interfaces() {
		r := Rule{Dest: f.Endpoint(), In: in.String(), Target: "DROP"}
		if p.Verdict() == policy.Reject {
			r.Target, r.RejectWith = "REJECT", icmpError(f)
			tcp := r
			tcp.TCP, tcp.RejectWith = true, "tcp-reset"
			rules = append(rules, tcp)
		}
		rules = append(rules, r)
	}
	return rules
}

// icmpError returns the error that REJECT sends by default; iptables always prints it, so it is always written.
func icmpError(f imds.Family) string {
	if f == imds.IPv6 {
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

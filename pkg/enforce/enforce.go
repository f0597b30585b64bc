// Package enforce holds the words that the rest of the program shares: the address families, the states that a look at
// the kernel can find, and the reading that carries them. It depends on nothing, so that every layer, the loop and the
// metrics can use it without knowing each other.
package enforce

import "net/netip"

// Family is an address family. IPv4 and IPv6 are two values of this type everywhere; nothing is written twice for them.
type Family string

// The families, in the order in which they are tended.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Families lists every family.
var Families = []Family{IPv4, IPv6}

// Endpoint is the address of the EC2 instance metadata service in this family, as a host prefix.
//
// Source: AWS, "Use the Instance Metadata Service to access instance metadata" (both addresses; the IPv6 one exists on
// Nitro instances in subnets with IPv6).
func (f Family) Endpoint() netip.Prefix {
	if f == IPv6 {
		return netip.MustParsePrefix("fd00:ec2::254/128")
	}
	return netip.MustParsePrefix("169.254.169.254/32")
}

// State is what a look found, as a metric label and in JSON.
type State string

const (
	// Enforced: every rule was read back from the kernel, first in its chain, once.
	Enforced State = "enforced"
	// Missing: at least one rule is not there.
	Missing State = "missing"
	// Shadowed: every rule is there, but something above one of them can let an IMDS packet through.
	Shadowed State = "shadowed"
	// Displaced: every rule is there and works, but other, harmless rules stand above.
	Displaced State = "displaced"
	// Duplicate: every rule is there and works, and at least one of them more than once.
	Duplicate State = "duplicate"
	// Unknown: the kernel could not be read, or what it said could not be understood.
	Unknown State = "unknown"
	// Unsupported: the node has no packet path of this family, so there is nothing to enforce (and nothing to fear).
	Unsupported State = "unsupported"
)

// States lists every state, DriftStates those that are a departure from Enforced.
var (
	DriftStates = []State{Missing, Shadowed, Displaced, Duplicate, Unknown}
	States      = append([]State{Enforced, Unsupported}, DriftStates...)
)

// Protects reports whether a packet from a pod to the endpoint is known to be stopped in this state.
func (s State) Protects() bool {
	switch s {
	case Enforced, Displaced, Duplicate, Unsupported:
		return true
	}
	return false
}

// Drifted reports whether the state is a departure from what was asked for.
func (s State) Drifted() bool { return s != Enforced && s != Unsupported }

// Reading is what one look at one layer found. It is a value: nothing in it changes after the look.
type Reading struct {
	State State
	// Detail says in words why the state is not Enforced: the rule above ours, or what could not be read.
	Detail string
	// Rules are the rules of ours that were read back, each once, in iptables-save form.
	Rules []string
	// Blocked is how many packets the kernel says these rules stopped, counted over re-insertions of the rule.
	Blocked uint64
	// Err is why the kernel could not be read; set only with Unknown.
	Err error
}

// Package policy describes what is wanted: for which pods, and what happens to their packets. Layers receive a policy each time
// they look or repair, and keep none.
package policy

import (
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// Verdict is what happens to a pod's packet to the endpoint.
type Verdict string

const (
	// Drop sends no answer: a client hangs until it times out.
	Drop Verdict = "drop"
	// Reject answers TCP with a reset, which is not rate-limited, and everything else with an ICMP error.
	Reject Verdict = "reject"
)

// Verdicts lists every verdict.
var Verdicts = []Verdict{Drop, Reject}

// HostNetwork is what happens to a socket call of a pod in the node's own network namespace. Its packets look like the node's,
// so only a layer of sockets can tell them apart.
type HostNetwork string

const (
	// Allow lets them through.
	Allow HostNetwork = "allow"
	// Audit lets them through, and counts those that Block would refuse.
	Audit HostNetwork = "audit"
	// Block refuses them, except those of pods in namespaces that are let through.
	Block HostNetwork = "block"
)

// HostNetworks lists every value.
var HostNetworks = []HostNetwork{Allow, Audit, Block}

// Mode says whether anything is stopped at all.
type Mode string

const (
	// Enforce keeps pods from the endpoint.
	Enforce Mode = "enforce"
	// AuditOnly stops nothing, but counts who would be stopped.
	AuditOnly Mode = "audit"
)

// Modes lists every mode.
var Modes = []Mode{Enforce, AuditOnly}

// Policy is immutable. A running agent's policy is replaced as a whole, so that nobody ever sees half of a change.
type Policy struct {
	interfaces []ifpattern.Pattern
	verdict    Verdict
	host       HostNetwork
	auditOnly  bool
}

// New makes a policy: pods behind interfaces that match one of the patterns get the verdict. Duplicate patterns count once.
func New(interfaces []ifpattern.Pattern, v Verdict) Policy {
	p := Policy{verdict: v}
	for _, pattern := range interfaces {
		if !slices.Contains(p.interfaces, pattern) {
			p.interfaces = append(p.interfaces, pattern)
		}
	}
	return p
}

// Interfaces returns the pod-side interface patterns, in the order given.
func (p Policy) Interfaces() []ifpattern.Pattern { return slices.Clone(p.interfaces) }

// Verdict returns what happens to a packet.
func (p Policy) Verdict() Verdict { return p.verdict }

// WithHostNetwork returns the same policy with another setting for hostNetwork pods.
func (p Policy) WithHostNetwork(h HostNetwork) Policy {
	p.host = h
	return p
}

// HostNetwork returns what happens to hostNetwork pods.
func (p Policy) HostNetwork() HostNetwork {
	if p.host == "" {
		return Allow
	}
	return p.host
}

// WithMode returns the same policy in another mode.
func (p Policy) WithMode(m Mode) Policy {
	p.auditOnly = m == AuditOnly
	return p
}

// AuditOnly reports whether nothing is to be stopped, only counted.
func (p Policy) AuditOnly() bool { return p.auditOnly }

// String formats the policy for the log: the patterns, separated by commas, the verdict, and what happens to hostNetwork pods
// if they are not simply allowed. In audit mode it is prefixed with "audit: ".
func (p Policy) String() string {
	texts := make([]string, len(p.interfaces))
	for i, pattern := range p.interfaces {
		texts[i] = pattern.String()
	}
	text := strings.Join(texts, ",") + " " + string(p.verdict)
	if h := p.HostNetwork(); h != Allow {
		text += ", hostNetwork pods " + string(h)
	}
	if p.auditOnly {
		text = "audit: " + text
	}
	return text
}

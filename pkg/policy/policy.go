// Package policy is what is wanted: for which pods, and what happens to their packets. Layers are given a policy when they
// look and when they repair; they keep none.
package policy

import (
	"slices"
	"strings"

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

// HostNetwork is what happens to a socket call of a pod in the node's own network namespace. Its packets are the node's, so that
// only a layer of sockets can tell.
type HostNetwork string

const (
	// Allow lets them through.
	Allow HostNetwork = "allow"
	// Audit lets them through, and counts those of pods that Block would refuse.
	Audit HostNetwork = "audit"
	// Block refuses them, but for those of pods that are let through by name.
	Block HostNetwork = "block"
)

// HostNetworks lists every one.
var HostNetworks = []HostNetwork{Allow, Audit, Block}

// Mode is whether anything is stopped at all.
type Mode string

const (
	// Enforce keeps pods from the endpoint.
	Enforce Mode = "enforce"
	// AuditOnly stops nothing, and counts who would be stopped.
	AuditOnly Mode = "audit"
)

// Modes lists every mode.
var Modes = []Mode{Enforce, AuditOnly}

// Policy is immutable. A running agent gets another one as a whole; nobody ever sees half of a change.
type Policy struct {
	interfaces []ifpattern.Pattern
	verdict    Verdict
	host       HostNetwork
	auditOnly  bool
}

// New makes a policy: pods behind interfaces that one of the patterns matches get the verdict. A pattern given twice counts
// once.
func New(interfaces []ifpattern.Pattern, v Verdict) Policy {
	p := Policy{verdict: v}
	for _, pattern := range interfaces {
		if !slices.Contains(p.interfaces, pattern) {
			p.interfaces = append(p.interfaces, pattern)
		}
	}
	return p
}

// Interfaces are the pod-side interface patterns, in the order in which they were given.
func (p Policy) Interfaces() []ifpattern.Pattern { return slices.Clone(p.interfaces) }

// Verdict is what happens to a packet.
func (p Policy) Verdict() Verdict { return p.verdict }

// WithHostNetwork is the same policy with another word about pods in the node's network.
func (p Policy) WithHostNetwork(h HostNetwork) Policy {
	p.host = h
	return p
}

// HostNetwork is what happens to pods in the node's network.
func (p Policy) HostNetwork() HostNetwork {
	if p.host == "" {
		return Allow
	}
	return p.host
}

// WithMode is the same policy in another mode.
func (p Policy) WithMode(m Mode) Policy {
	p.auditOnly = m == AuditOnly
	return p
}

// AuditOnly: nothing is to be stopped, only counted.
func (p Policy) AuditOnly() bool { return p.auditOnly }

// String is for the log: the patterns, separated by commas, the verdict, and what happens to pods in the node's network, if
// anything. In audit mode it begins with that.
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

// Package layer holds the words that everybody uses who deals with a layer: what names it, the states that a look at the
// kernel can find it in, and what such a look found. It depends on nothing but the families, so that the layers, the guard
// and whoever reports need not know each other.
package layer

import (
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// ID names a layer: one way of keeping the packets of one family from the endpoint. No two layers share one.
type ID struct {
	// Name is the way, as a metric label, e.g. iptables.
	Name   string
	Family imds.Family
}

// String is for a person, e.g. "iptables ipv4".
func (id ID) String() string { return id.Name + " " + string(id.Family) }

// State is what a look found, as a metric label and in JSON. Values are made once, by NewState, and compared by ==. A layer
// has the common states below, and may have others of its own.
type State struct {
	name   string
	closed bool
}

// NewState makes a state. closed says that in it no packet from a pod gets to the endpoint by way of this layer's family.
func NewState(name string, closed bool) State { return State{name, closed} }

// The states that every layer has.
var (
	// Enforced: everything was read back from the kernel as it is wanted.
	Enforced = NewState("enforced", true)
	// Missing: at least one part is not there.
	Missing = NewState("missing", false)
	// Unknown: the kernel could not be read, or what it said could not be understood.
	Unknown = NewState("unknown", false)
	// Unsupported: this node does not support the layer. It is no drift, and it stops nothing.
	Unsupported = NewState("unsupported", false)
	// Auditing: everything was read back as it is wanted, which is to count and to stop nothing. Only a layer that can has it.
	Auditing = NewState("auditing", false)
)

// States lists the common states and those of a layer's own.
func States(own ...State) []State {
	return slices.Concat([]State{Enforced, Unsupported, Missing}, own, []State{Unknown})
}

// String is the state's name.
func (s State) String() string { return s.name }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.name), nil }

// Protects reports whether a packet from a pod to the endpoint is known to be stopped in this state.
func (s State) Protects() bool { return s.closed }

// Drifted reports whether the state is a departure from what was asked for.
func (s State) Drifted() bool { return s != Enforced && s != Auditing && s != Unsupported }

// Reading is what one look at one layer found, for everybody. It is a value: nothing in it changes after the look.
type Reading struct {
	State State
	// Detail says in words why the state is not Enforced: the rule above ours, or what could not be read. With Enforced it
	// says what is unusual about it.
	Detail string
	// NoPath, with Unsupported: no packet of this family crosses the node, so that there is nothing to fear either.
	NoPath bool
	// AnyInterface: in a state that protects, it does so by whatever interface a packet comes in; else only by those that the
	// policy names.
	AnyInterface bool
	// SocketsOnly: it stops what sockets send, and not packets that come by other ways, so that it closes no path alone.
	SocketsOnly bool
	// Rules are the rules of ours that were read back, each once: as iptables-save or `ip` has them.
	Rules []string
	// Blocked is how many packets the kernel says these rules stopped, counted over re-insertions of the rule.
	Blocked uint64
	// Err is what failed in the look. With Unknown, nothing could be read because of it; with another state, something
	// else said enough.
	Err error
	// Place is where the layer was looked for, if it has several, such as a backend of iptables. In a new place it has yet
	// to be installed, so that its absence there is no drift.
	Place string
}

// Forget makes the reading unknown, for a reason: nothing that was read proves anything any more. How many packets were stopped
// stays.
func (r *Reading) Forget(why string) {
	*r = Reading{State: Unknown, Detail: why, SocketsOnly: r.SocketsOnly, Blocked: r.Blocked, Place: r.Place}
}

// Finding is what one look found: the Reading, and what the same layer's Repair needs to know beside it.
type Finding struct {
	Reading
	// Plan is the layer's own; nobody else looks into it.
	Plan any
	// Again is after what time to look again, if that is sooner than anything else asks for; zero for no wish.
	Again time.Duration
}

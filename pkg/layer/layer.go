// Package layer defines the terms that everything dealing with a layer shares: its ID, the states that a look at the kernel can
// find it in, and the result of such a look. It depends only on the families, so that layers, guard and reporters need not know
// each other.
package layer

import (
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// ID names a layer: one way of keeping packets of one family from the endpoint. IDs are unique.
type ID struct {
	// Name is the layer's name, as a metric label, e.g. iptables.
	Name   string
	Family imds.Family
}

// String formats the ID for people, e.g. "iptables ipv4".
func (id ID) String() string { return id.Name + " " + string(id.Family) }

// State is what a look found, as a metric label and in JSON. Values are made once, by NewState, and compared by ==. Every layer
// has the common states below, and may have its own as well.
type State struct {
	name   string
	closed bool
}

// NewState makes a state. closed says that in this state no packet from a pod reaches the endpoint by way of this layer's
// family.
func NewState(name string, closed bool) State { return State{name, closed} }

// The states that every layer has.
var (
	// Enforced: everything was read back from the kernel as wanted.
	Enforced = NewState("enforced", true)
	// Missing: at least one part is not there.
	Missing = NewState("missing", false)
	// Unknown: the kernel could not be read, or its answer could not be understood.
	Unknown = NewState("unknown", false)
	// Unsupported: the node does not support this layer. This is not a drift, and nothing is stopped.
	Unsupported = NewState("unsupported", false)
	// Auditing: everything was read back as wanted, which is to count and to stop nothing. Only layers that can do this have
	// it.
	Auditing = NewState("auditing", false)
)

// States lists the common states and a layer's own.
func States(own ...State) []State {
	return slices.Concat([]State{Enforced, Unsupported, Missing}, own, []State{Unknown})
}

// String returns the state's name.
func (s State) String() string { return s.name }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.name), nil }

// Protects reports whether a packet from a pod to the endpoint is known to be stopped in this state.
func (s State) Protects() bool { return s.closed }

// Drifted reports whether the state differs from what was asked for.
func (s State) Drifted() bool { return s != Enforced && s != Auditing && s != Unsupported }

// Reading is the public result of one look at one layer. It is a value: nothing in it changes after the look.
type Reading struct {
	State State
	// Detail says why the state is not Enforced: the rule above ours, or what could not be read. With Enforced it says what is
	// unusual.
	Detail string
	// NoPath, with Unsupported: no packet of this family crosses the node, so there is nothing to stop.
	NoPath bool
	// AnyInterface: in a state that protects, the layer stops packets whatever interface they come in by, and not only on those
	// that the policy names.
	AnyInterface bool
	// SocketsOnly: the layer stops what sockets send, but not packets from other sources, so it never closes a path alone.
	SocketsOnly bool
	// Rules are those of our rules that were read back, each once, in the form of iptables-save or `ip`.
	Rules []string
	// Blocked is how many packets these rules stopped, by the kernel's counters, added up across re-insertions.
	Blocked uint64
	// Err is what failed in the look. With Unknown, it is why nothing could be read; with another state, other evidence was
	// sufficient.
	Err error
	// Place is where the layer was looked for, if there are several possible places, such as iptables' backends. In a new place
	// it is not installed yet, so its absence there is not a drift.
	Place string
}

// Forget makes the reading unknown, with a reason: nothing that was read proves anything any more. The count of stopped packets
// stays.
func (r *Reading) Forget(why string) {
	*r = Reading{State: Unknown, Detail: why, SocketsOnly: r.SocketsOnly, Blocked: r.Blocked, Place: r.Place}
}

// Finding is the result of one look: the Reading, and what the same layer's Repair needs in addition.
type Finding struct {
	Reading
	// Plan is private to the layer.
	Plan any
	// Again is when to look again, if that is sooner than otherwise planned; zero for no preference.
	Again time.Duration
}

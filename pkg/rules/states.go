// The states that only iptables rules can be in, since their place in the chain and their number matter.

package rules

import "github.com/imds-guard/imds-guard/pkg/layer"

var (
	// Shadowed: every rule is there, but something above one of them may let an IMDS packet through.
	Shadowed = layer.NewState("shadowed", false)
	// Displaced: every rule is there and works, but other, harmless rules are above it.
	Displaced = layer.NewState("displaced", true)
	// Duplicate: every rule is there and works, and at least one of them more than once.
	Duplicate = layer.NewState("duplicate", true)
)

// States lists every state of the layer.
var States = layer.States(Shadowed, Displaced, Duplicate)

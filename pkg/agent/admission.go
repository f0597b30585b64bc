// Whether pods may start on the node.

package agent

import (
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// admits reports whether the start-up taint may go: what the policy asks for has been read back from the kernel in every
// layer. It is a question beside whether the node is protected: a policy may ask for less than that.
func admits(s guard.Status) bool {
	supported := false
	for _, l := range s.Layers {
		if !l.State.Protects() {
			return false
		}
		supported = supported || l.State != layer.Unsupported
	}
	return supported
}

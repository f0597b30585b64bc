// Whether pods may start on the node.

package agent

import "github.com/imds-guard/imds-guard/pkg/guard"

// admits reports whether the start-up taint may go: every path of a pod to the endpoint is closed by at least one layer, as
// read back from the kernel. It is a question beside whether the node is protected: a policy may ask for less than that.
func admits(s guard.Status) bool { return s.Protected }

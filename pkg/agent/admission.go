// Whether pods may start on the node.

package agent

import "github.com/imds-guard/imds-guard/pkg/guard"

// admits reports whether the start-up taint may be removed: every path from a pod to the endpoint is closed by at least one
// layer, as read back from the kernel. Today that means that the node is protected, but it is a separate question. (The first
// probes are waited for as well, though not for long.) In audit mode nothing is meant to be stopped, so no pod has to wait.
func admits(s guard.Status) bool { return s.Protected || s.Auditing }

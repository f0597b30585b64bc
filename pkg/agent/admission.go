// Whether pods may start on the node.

package agent

import "github.com/imds-guard/imds-guard/pkg/guard"

// admits reports whether the start-up taint may go: every path of a pod to the endpoint is closed by at least one layer, as
// read back from the kernel. Today that is whether the node is protected; it is a question of its own. (The first probes are
// waited for, too, but not for long.) In audit mode nothing is to be stopped, so no pod has to wait.
func admits(s guard.Status) bool { return s.Protected || s.Auditing }

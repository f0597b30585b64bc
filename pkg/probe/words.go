// The names of the probes' paths and results.

package probe

// The paths that are probed.
const (
	// PathForward is the path of packets that the node forwards.
	PathForward = "forward"
	// PathUnnamed is the same, through an interface that no pattern names.
	PathUnnamed = "unnamed"
	// PathSocket is the path of sockets, whatever way their packets take.
	PathSocket = "socket"
)

// Paths lists every path.
var Paths = []string{PathForward, PathUnnamed, PathSocket}

// The results.
const (
	// Stopped: a layer counted it, or nothing of its kind gets anywhere.
	Stopped = "stopped"
	// Answered: it was let through.
	Answered = "answered"
	// Error: it could not be sent, or its outcome is unknown.
	Error = "error"
)

// Results lists every result.
var Results = []string{Stopped, Answered, Error}

// The words for what a probe is about and came to.

package probe

// The paths that are probed.
const (
	// PathForward is that of packets that the node forwards.
	PathForward = "forward"
	// PathUnnamed is the same by an interface that no pattern names.
	PathUnnamed = "unnamed"
	// PathSocket is that of sockets, whatever way their packets take.
	PathSocket = "socket"
)

// Paths lists every path.
var Paths = []string{PathForward, PathUnnamed, PathSocket}

// The results.
const (
	// Stopped: a layer has counted it, or nothing of its kind gets anywhere.
	Stopped = "stopped"
	// Answered: it was let through.
	Answered = "answered"
	// Error: it could not be sent, or nobody knows what became of it.
	Error = "error"
)

// Results lists every result.
var Results = []string{Stopped, Answered, Error}

// The log lines about interfaces that no pattern covers.

package ifwatch

import (
	"log/slog"
	"time"
)

// QuietTime is how long an interface must have been uncovered before the log names it: a CNI plugin first makes a veth, and
// adds it to its bridge or renames it later.
const QuietTime = time.Second

// Reporter names what is uncovered, each interface once for as long as it stays so. It is not safe for concurrent use.
type Reporter struct {
	Log *slog.Logger
	// Notify is called with every pod-side interface that the log names, and with the fix. It may be nil.
	Notify func(name, fix string)

	since map[Interface]time.Time // since when each pod-side interface has been uncovered
	named map[Interface]bool      // pod-side interfaces that the log has named
	open  map[Interface]bool      // tunnels that the log has named
}

// Report takes the pod-side interfaces and tunnels that are uncovered now. It returns the names of the interfaces that have
// been uncovered for QuietTime, and whether others are pending, to be decided when their QuietTime is over. Tunnels are only
// logged.
func (r *Reporter) Report(now time.Time, uncovered, openTunnels []Interface) (settled []string, pending bool) {
	since, named := map[Interface]time.Time{}, map[Interface]bool{}
	for _, i := range uncovered {
		since[i], named[i] = now, r.named[i]
		if first, known := r.since[i]; known {
			since[i] = first
		}
		if now.Sub(since[i]) < QuietTime {
			pending = true
			continue
		}
		settled = append(settled, i.Name)
		if !named[i] {
			named[i] = true
			r.nameInterface(i)
		}
	}
	r.since, r.named = since, named
	r.reportTunnels(openTunnels)
	return settled, pending
}

func (r *Reporter) nameInterface(i Interface) {
	fix := Fix(i.Name)
	r.Log.Warn("no rule covers a pod-side interface: its pods can reach the metadata service",
		"interface", i.Name, "kind", i.Kind, "fix", fix)
	if r.Notify != nil {
		r.Notify(i.Name, fix)
	}
}

// reportTunnels needs no quiet time: a tunnel counts only once it is up, and setting it up comes last.
func (r *Reporter) reportTunnels(tunnels []Interface) {
	open := map[Interface]bool{}
	for _, i := range tunnels {
		open[i] = true
		if !r.open[i] {
			r.Log.Warn("no rule covers what comes out of a tunnel: a pod that sends encapsulated packets to the node's "+
				"tunnel port can reach the metadata service through it", "interface", i.Name, "kind", i.Kind, "fix", Fix(i.Name))
		}
	}
	r.open = open
}

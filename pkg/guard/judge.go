// What follows from the layers' states and from the other evidence about the node.

package guard

import (
	"fmt"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// Evidence is what is known about the node in addition to the layers' readings.
type Evidence struct {
	// Bypasses are the ways past the FORWARD hook for pods' packets that were found on the node, in words. Only a layer that
	// refuses sockets stops what goes that way.
	Bypasses []string
	// Unsearched says why it is not known whether there are any.
	Unsearched error
	// Answered says which probe packet was let through, and Connected which probe socket, whatever was read back. Empty for
	// none.
	Answered, Connected string
	// NotProbed says why no probe could be sent.
	NotProbed error
	// Auditing: nothing is meant to be stopped. Blocking names what blocks all the same.
	Auditing bool
	Blocking []string
	// Unlisted says why hostNetwork pods that should be blocked are let through, if they are.
	Unlisted error
}

// Status is what is known about all layers at one moment, and what follows from it. It is paths that are protected, not layers:
// what the node forwards in a family is stopped by any one of the family's packet layers; a way past FORWARD is closed by a
// layer that refuses sockets.
type Status struct {
	Layers []LayerStatus
	Evidence
	// Protected: every path in every family is closed by at least one layer that was recently read back from the kernel, and
	// nothing suggests that this has changed.
	Protected bool
	// Forward: this is so for what the node forwards, in every family. AnyInterface: it is so whatever interface a packet comes
	// in by, not only for those that the policy names.
	Forward, AnyInterface bool
	// Open: at least one path is known not to be closed. If neither this nor Protected is set, it is not known.
	Open bool
	// Degraded: a layer that the node supports is not known to be in force, or no probe could be sent, or hostNetwork pods that
	// should be blocked are let through.
	Degraded bool
}

// path is one way to the endpoint, in one family.
type path struct{ closed, anyInterface, unknown bool }

func (p *path) add(l LayerStatus) {
	protects := l.State.Protects()
	p.closed = p.closed || protects || l.NoPath
	p.anyInterface = p.anyInterface || protects && l.AnyInterface || l.NoPath
	p.unknown = p.unknown || l.State == layer.Unknown
}

// Judge draws the conclusions. A family of which no packet crosses the node needs no layer, but at least one family has to be
// stopped by one. A layer of sockets alone never closes the forwarding path, since what it misses goes that way.
func Judge(layers []LayerStatus, e Evidence) Status {
	s := Status{Layers: layers, Evidence: e}
	forward, sockets := map[imds.Family]path{}, map[imds.Family]path{}
	for _, l := range layers {
		protects := l.State.Protects()
		f, k := forward[l.Family], sockets[l.Family]
		if l.SocketsOnly {
			k.add(l)
		} else {
			f.add(l)
			s.Forward = s.Forward || protects
		}
		forward[l.Family], sockets[l.Family] = f, k
		s.Degraded = s.Degraded || l.State.Drifted() && !protects
	}
	s.AnyInterface = s.Forward
	for _, p := range forward {
		s.Forward = s.Forward && p.closed
		s.AnyInterface = s.AnyInterface && p.anyInterface
		s.Open = s.Open || !p.closed && !p.unknown
	}
	s.Protected = s.Forward && e.Answered == "" && !e.Auditing
	if len(e.Bypasses) > 0 || e.Unsearched != nil {
		for _, p := range sockets {
			s.Protected = s.Protected && p.closed
			s.Open = s.Open || !p.closed && !p.unknown && len(e.Bypasses) > 0
		}
		s.Protected = s.Protected && e.Connected == ""
		s.Open = s.Open || e.Connected != "" && len(e.Bypasses) > 0
	}
	s.Open = s.Open || e.Answered != "" || e.Auditing
	s.Degraded = s.Degraded || e.Connected != ""
	s.Degraded = s.Degraded || e.NotProbed != nil || e.Unlisted != nil
	return s
}

// Reasons says in words what else there is to know beside the layers' states: what is open, or what would be open without some
// layer.
func (s Status) Reasons() (reasons []string) {
	if s.Auditing && len(s.Blocking) > 0 {
		reasons = append(reasons, fmt.Sprintf("rules like those of imds-guard are in FORWARD (%s) and block pods even in audit mode: "+
			"an admin added them, or they were not recorded; `imds-guard cleanup` removes them", strings.Join(s.Blocking, ", ")))
	}
	if s.Auditing {
		reasons = append(reasons, "imds-guard runs in audit mode: it blocks nothing and counts who asks (`imds-guard report`)")
	}
	if s.Answered != "" {
		reasons = append(reasons, "a probe was let through: "+s.Answered)
	}
	if s.Connected != "" {
		reasons = append(reasons, "a probe's socket was not refused: "+s.Connected)
	}
	if len(s.Bypasses) > 0 {
		reasons = append(reasons, fmt.Sprintf("pods' packets bypass FORWARD (%s); there, only the cgroup layer stops them, and raw frames (AF_PACKET) are not stopped",
			strings.Join(s.Bypasses, ", ")))
	}
	if s.Unsearched != nil {
		reasons = append(reasons, "it is not known whether pods' packets bypass FORWARD: "+s.Unsearched.Error())
	}
	if s.Unlisted != nil {
		reasons = append(reasons, "hostNetwork pods are let through: "+s.Unlisted.Error())
	}
	if s.NotProbed != nil {
		reasons = append(reasons, "no probe could be sent: "+s.NotProbed.Error())
	}
	return reasons
}

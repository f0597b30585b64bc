// Probes: packets and socket calls that the agent makes itself, and which layers stopped them.

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/probe"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// Probe is the result of one probe.
type Probe struct {
	Path   string      `json:"path"`
	Family imds.Family `json:"family"`
	Result string      `json:"result"`
	// Detail says what happened, if it was not stopped.
	Detail string `json:"detail,omitempty"`
	// StoppedBy are the layers that counted it.
	StoppedBy []string `json:"stoppedBy"`
}

// String formats the result for people.
func (p Probe) String() string {
	text := fmt.Sprintf("%s %s %s", p.Path, p.Family, p.Result)
	if len(p.StoppedBy) > 0 {
		text += " by " + strings.Join(p.StoppedBy, " and ")
	}
	if p.Detail != "" {
		text += ": " + p.Detail
	}
	return text
}

// isOf reports whether both concern the same path in the same family.
func (p Probe) isOf(other Probe) bool { return p.Path == other.Path && p.Family == other.Family }

// probes makes the probes. look reads every layer afresh; own, which may be nil, keeps them out of the count of stopped
// packets.
type probes struct {
	patterns []ifpattern.Pattern
	look     func(context.Context) []guard.LayerStatus
	own      *ownPackets
}

// The layers that can stop a probe on each path.
var stopping = map[string][]string{
	probe.PathForward: {rules.LayerName, route.LayerName},
	probe.PathUnnamed: {route.LayerName},
	probe.PathSocket:  {cgroup.LayerName},
}

// inForce reports whether the layer of a family is read back as stopping something.
func inForce(layers []guard.LayerStatus, name string, f imds.Family) bool {
	l, there := find(layers, layer.ID{Name: name, Family: f})
	return there && l.State.Protects()
}

// all probes every path in every family, until ctx ends. A path that only one layer can close is probed only while that layer
// is in force: otherwise the result is known in advance.
func (p probes) all(ctx context.Context) (results []Probe) {
	add := func(result Probe, proves bool) {
		if proves {
			results = append(results, result)
		}
	}
	for _, f := range imds.Families {
		add(p.one(ctx, probe.PathForward, f, probe.Packets, "", func([]guard.LayerStatus) (string, error) { return forward(f, p.patterns) }))
		add(p.one(ctx, probe.PathUnnamed, f, probe.Packets, route.LayerName, func([]guard.LayerStatus) (string, error) { return forward(f, nil) }))
	}
	for _, f := range imds.Families {
		add(p.one(ctx, probe.PathSocket, f, 1, cgroup.LayerName, func(before []guard.LayerStatus) (string, error) {
			refused, err := cgroup.Ask(f, before[0].Place)
			if err != nil || refused {
				return "", err
			}
			return "a socket was connected", nil
		}))
	}
	return results
}

func find(layers []guard.LayerStatus, id layer.ID) (l guard.LayerStatus, there bool) {
	i := slices.IndexFunc(layers, func(l guard.LayerStatus) bool { return l.ID == id })
	if i < 0 {
		return l, false
	}
	return layers[i], true
}

// forward says how a packet got through, if it did.
func forward(f imds.Family, patterns []ifpattern.Pattern) (letThrough string, err error) {
	seen, err := probe.Forward(f, patterns)
	switch {
	case seen.Answered:
		return "the endpoint answered", nil
	case seen.Left != "":
		return "it left the node through " + seen.Left, nil
	}
	return "", err
}

// one sends n packets or socket calls, and finds out from the layers' counters which of them stopped those. The result proves
// nothing if the layer named by about, if any, was not in force both before and after.
func (p probes) one(ctx context.Context, path string, f imds.Family, n uint64, about string,
	send func(before []guard.LayerStatus) (letThrough string, err error),
) (result Probe, proves bool) {
	result = Probe{Path: path, Family: f, StoppedBy: []string{}}
	before := slices.DeleteFunc(p.look(ctx), func(l guard.LayerStatus) bool {
		return l.Family != f || !slices.Contains(stopping[path], l.Name)
	})
	if about != "" && !inForce(before, about, f) {
		return result, false
	}
	p.own.expect(before, n)
	letThrough, err := send(before)
	after := p.look(ctx)
	var missed []guard.LayerStatus
	for _, l := range before {
		if now, _ := find(after, l.ID); now.Blocked >= l.Blocked+n {
			result.StoppedBy = append(result.StoppedBy, l.Name)
		} else {
			missed = append(missed, l)
		}
	}
	p.own.missed(missed, n)
	if about != "" && !inForce(after, about, f) {
		return result, false
	}
	switch {
	case letThrough != "":
		result.Result, result.Detail = probe.Answered, letThrough
	case errors.Is(err, probe.ErrNotForwarding), errors.Is(err, unix.EAFNOSUPPORT):
		result.Result, result.Detail = probe.Stopped, err.Error()
	case err != nil:
		result.Result, result.Detail = probe.Error, err.Error()
	case len(result.StoppedBy) == 0 && path == probe.PathUnnamed: // Linux 6.1 doesn't count packets dropped by the sink
		result.Result, result.Detail = probe.Stopped, "it was not seen leaving the node"
	case len(result.StoppedBy) == 0:
		result.Result, result.Detail = probe.Error, "no layer counted it, and no answer came"
	default:
		result.Result = probe.Stopped
	}
	return result, true
}

// probesEvidence returns what the results prove.
func probesEvidence(results []Probe) (e guard.Evidence) {
	for _, p := range results {
		switch {
		case p.Result == probe.Answered && p.Path == probe.PathSocket:
			e.Connected = cmp.Or(e.Connected, p.String())
		case p.Result == probe.Answered:
			e.Answered = cmp.Or(e.Answered, p.String())
		case p.Result == probe.Error && e.NotProbed == nil:
			e.NotProbed = fmt.Errorf("%s", p)
		}
	}
	return e
}

// Packets and socket calls of our own, and who stopped them.

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/probe"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// Probe is what came of one packet, or of one socket call.
type Probe struct {
	Path   string      `json:"path"`
	Family imds.Family `json:"family"`
	Result string      `json:"result"`
	// Detail says what happened, if it was not stopped.
	Detail string `json:"detail,omitempty"`
	// StoppedBy are the layers that have counted it.
	StoppedBy []string `json:"stoppedBy"`
}

// String is for a person.
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

// probes is how they are made: look reads every layer anew; own, which may be nil, keeps them out of the count of what was stopped.
type probes struct {
	patterns []ifpattern.Pattern
	look     func(context.Context) []guard.LayerStatus
	own      *ownPackets
}

// The layers that may stop what goes by a path.
var stopping = map[string][]string{
	probe.PathForward: {rules.LayerName, route.LayerName},
	probe.PathSocket:  {cgroup.LayerName},
}

// all probes every path of every family that the layers are about, until ctx ends.
func (p probes) all(ctx context.Context) (results []Probe) {
	for _, f := range imds.Families {
		results = append(results, p.one(ctx, probe.PathForward, f, func() (string, error) { return p.forward(f) }))
	}
	for _, f := range imds.Families {
		// Where the layer is not in force, that is known, and no proof is needed that a socket is not refused.
		id := layer.ID{Name: cgroup.LayerName, Family: f}
		before, asked := find(p.look(ctx), id)
		if !asked || !before.State.Protects() {
			continue
		}
		result := p.one(ctx, probe.PathSocket, f, func() (string, error) {
			refused, err := cgroup.Ask(f, before.Place)
			if err != nil || refused {
				return "", err
			}
			return "a socket was connected", nil
		})
		if after, _ := find(p.look(ctx), id); after.State.Protects() {
			results = append(results, result)
		}
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

// forward says how a packet was let through, if it was.
func (p probes) forward(f imds.Family) (letThrough string, err error) {
	seen, err := probe.Forward(f, p.patterns)
	switch {
	case seen.Answered:
		return "the endpoint answered", nil
	case seen.Left != "":
		return "it left the node by " + seen.Left, nil
	}
	return "", err
}

// one sends, and finds out by their counters which of the layers that may stop it did.
func (p probes) one(ctx context.Context, path string, f imds.Family, send func() (letThrough string, err error)) Probe {
	result := Probe{Path: path, Family: f, StoppedBy: []string{}}
	before := slices.DeleteFunc(p.look(ctx), func(l guard.LayerStatus) bool {
		return l.Family != f || !slices.Contains(stopping[path], l.Name)
	})
	p.own.expect(before)
	letThrough, err := send()
	after := p.look(ctx)
	var missed []guard.LayerStatus
	for _, l := range before {
		if now, _ := find(after, l.ID); now.Blocked > l.Blocked {
			result.StoppedBy = append(result.StoppedBy, l.Name)
		} else {
			missed = append(missed, l)
		}
	}
	p.own.missed(missed)
	switch {
	case letThrough != "":
		result.Result, result.Detail = probe.Answered, letThrough
	case errors.Is(err, probe.ErrNotForwarding):
		result.Result, result.Detail = probe.Stopped, err.Error()
	case err != nil:
		result.Result, result.Detail = probe.Error, err.Error()
	case len(result.StoppedBy) == 0:
		result.Result, result.Detail = probe.Error, "no layer has counted it, and it was not answered"
	default:
		result.Result = probe.Stopped
	}
	return result
}

// probesEvidence is what they prove.
func probesEvidence(results []Probe) (e guard.Evidence) {
	for _, p := range results {
		switch {
		case p.Result == probe.Answered && e.Answered == "":
			e.Answered = p.String()
		case p.Result == probe.Error && e.NotProbed == nil:
			e.NotProbed = fmt.Errorf("%s", p)
		}
	}
	return e
}

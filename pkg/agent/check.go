// One look at a node that changes nothing: `imds-guard check`.

package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/datapath"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// Check is the result of one look, as `imds-guard check -o json` prints it.
type Check struct {
	// Protected: every family was read back as stopping the pods' packets, and every pod-side interface is covered.
	Protected bool `json:"protected"`
	// Degraded: a layer that was asked for, and that the node can have, is not in force.
	Degraded bool `json:"degraded"`
	// Backend is the iptables backend that was read; empty without that layer.
	Backend    rules.Backend `json:"backend"`
	Families   []CheckFamily `json:"families"`
	Interfaces CheckLinks    `json:"interfaces"`
	// Bypasses are the ways past FORWARD that were found; there only the cgroup layer stops what pods send.
	Bypasses []string `json:"bypasses"`
	// Probes are the results of the probes, if any were asked for.
	Probes []Probe `json:"probes,omitempty"`

	status guard.Status
}

// CheckFamily is one layer in one family.
type CheckFamily struct {
	Family imds.Family `json:"family"`
	Layer  string      `json:"layer"`
	State  layer.State `json:"state"`
	Detail string      `json:"detail,omitempty"`
	Rules  []string    `json:"rules"`
}

// CheckLinks is the result for the interfaces.
type CheckLinks struct {
	PodSide   int      `json:"podSide"`
	Uncovered []string `json:"uncovered"`
	// Tunnels are tunnel interfaces that nothing covers: what pods send to the node inside such a tunnel is forwarded like any
	// packet of theirs.
	Tunnels []string `json:"tunnels"`
	Error   string   `json:"error,omitempty"`
}

// ErrNotProtected and ErrUnknown are the verdicts other than protected.
var (
	ErrNotProtected = errors.New("not protected")
	ErrUnknown      = errors.New("can't tell whether this node is protected")
)

// NewCheck takes one look, with probes if toProbe is set. The error says why that was not possible.
func NewCheck(ctx context.Context, c config.Config, toProbe bool) (Check, error) {
	if why := OutsideNode(); why != "" {
		return Check{}, fmt.Errorf("%w: %s", ErrUnknown, why)
	}
	record, err := rules.NewRecord(rules.RecordDir)
	if err != nil {
		return Check{}, err
	}
	recorded, err := record.Backend()
	if err != nil {
		return Check{}, err
	}
	layers, selector, err := newLayers(c, recorded)
	if err != nil {
		return Check{}, err
	}
	var check Check
	if selector != nil {
		check.Backend = selector.Current()
	}
	look := func(context.Context) (read []guard.LayerStatus) {
		for _, l := range layers {
			read = append(read, guard.LayerStatus{ID: l.ID(), Reading: l.Look(c.Policy(), func(string) {}).Reading})
		}
		return read
	}
	if toProbe && c.Mode == policy.Enforce {
		check.Probes = probes{patterns: c.Interfaces, look: look}.all(ctx)
	}
	read := look(ctx)
	for _, l := range read {
		check.Families = append(check.Families, CheckFamily{l.Family, l.Name, l.State, l.Detail, append([]string{}, l.Rules...)})
	}
	evidence := probesEvidence(check.Probes)
	if c.Mode == policy.AuditOnly {
		evidence.Auditing, evidence.Blocking = true, newLeftovers(c, recorded).look()
	}
	evidence.Bypasses, evidence.Unsearched = datapath.List()
	check.Bypasses = append([]string{}, evidence.Bypasses...)
	check.status = guard.Judge(read, evidence)
	check.Degraded = check.status.Degraded
	check.Interfaces = checkLinks(c, check.status)
	check.Protected = check.Verdict() == nil
	return check, nil
}

// checkLinks looks at the interfaces. If a layer in force covers all interfaces, none is uncovered.
func checkLinks(c config.Config, s guard.Status) (l CheckLinks) {
	picture, err := ifwatch.List()
	if err != nil {
		l.Error = err.Error()
	}
	l.PodSide = len(picture.Interfaces)
	if s.AnyInterface {
		picture = ifwatch.Picture{}
	}
	l.Uncovered = names(ifwatch.Uncovered(picture.Interfaces, c.Interfaces))
	l.Tunnels = names(ifwatch.Uncovered(picture.Tunnels, c.Interfaces))
	return l
}

func names(interfaces []ifwatch.Interface) []string {
	list := []string{}
	for _, i := range interfaces {
		list = append(list, i.Name)
	}
	return list
}

// Verdict is nil if the node is protected, else ErrNotProtected or ErrUnknown. What is known to be wrong outweighs what is not
// known.
func (c Check) Verdict() error {
	isUnknown := func(l guard.LayerStatus) bool { return l.State == layer.Unknown }
	switch {
	case c.status.Open || len(c.Interfaces.Uncovered) > 0:
		return ErrNotProtected
	case c.Interfaces.Error != "" && !c.status.AnyInterface:
		return ErrUnknown
	case c.status.Protected:
		return nil
	case c.status.Forward && c.status.Unsearched != nil:
		return ErrUnknown
	case slices.ContainsFunc(c.status.Layers, isUnknown):
		return ErrUnknown
	}
	return ErrNotProtected // there is no family to protect
}

// String formats the result for people.
func (c Check) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "protected      %t\n", c.Protected)
	if c.Degraded {
		b.WriteString("degraded       true\n")
	}
	if c.Backend != "" {
		fmt.Fprintf(&b, "backend        %s\n", c.Backend)
	}
	for _, f := range c.Families {
		fmt.Fprintf(&b, "%-14s %s", layer.ID{Name: f.Layer, Family: f.Family}, f.State)
		if f.Detail != "" {
			fmt.Fprintf(&b, ": %s", f.Detail)
		}
		b.WriteByte('\n')
		for _, rule := range f.Rules {
			fmt.Fprintf(&b, "               %s\n", rule)
		}
	}
	for _, p := range c.Probes {
		fmt.Fprintf(&b, "probe          %s\n", p)
	}
	for _, reason := range c.status.Reasons() {
		fmt.Fprintf(&b, "note           %s\n", reason)
	}
	i := c.Interfaces
	fmt.Fprintf(&b, "interfaces     %d pod-side, %d not covered\n", i.PodSide, len(i.Uncovered))
	if i.PodSide == 0 && i.Error == "" && !c.status.AnyInterface {
		b.WriteString("               no pod interface was found: if pods run here, it is not known whether a rule covers them; test from inside one\n")
	}
	for _, name := range i.Uncovered {
		fmt.Fprintf(&b, "               %s: %s\n", name, ifwatch.Fix(name))
	}
	for _, name := range i.Tunnels {
		fmt.Fprintf(&b, "               %s: packets that a pod sends to the node inside this tunnel are forwarded, and no rule covers them; %s\n", name, ifwatch.Fix(name))
	}
	if i.Error != "" {
		fmt.Fprintf(&b, "               %s\n", i.Error)
	}
	return b.String()
}

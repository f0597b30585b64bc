// One look at a node, changing nothing: what `imds-guard check` says.

package agent

import (
	"errors"
	"fmt"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// Check is what one look found, as `imds-guard check -o json` prints it.
type Check struct {
	// Protected: every family was read back as stopping the pods' packets, and rules cover every pod-side interface.
	Protected  bool          `json:"protected"`
	Backend    rules.Backend `json:"backend"`
	Families   []CheckFamily `json:"families"`
	Interfaces CheckLinks    `json:"interfaces"`
}

// CheckFamily is a layer of a family.
type CheckFamily struct {
	Family imds.Family `json:"family"`
	Layer  string      `json:"layer"`
	State  layer.State `json:"state"`
	Detail string      `json:"detail,omitempty"`
	Rules  []string    `json:"rules"`
}

// CheckLinks is what there is to say of the interfaces.
type CheckLinks struct {
	PodSide   int      `json:"podSide"`
	Uncovered []string `json:"uncovered"`
	// Tunnels are ways in that no rule covers: what pods send to the node in such a tunnel is forwarded like a packet of
	// their own.
	Tunnels []string `json:"tunnels"`
	Error   string   `json:"error,omitempty"`
}

// ErrNotProtected and ErrUnknown are what a look may end in.
var (
	ErrNotProtected = errors.New("not protected")
	ErrUnknown      = errors.New("can't tell whether this node is protected")
)

// NewCheck looks. The error says that no look was possible.
func NewCheck(c config.Config) (Check, error) {
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
	selector, err := rules.NewSelector(c.Backend, imds.Families, recorded)
	if err != nil {
		return Check{}, err
	}
	check := Check{Backend: selector.Current()}
	for _, l := range newLayers(selector) {
		r := l.Look(c.Policy(), func(string) {})
		check.Families = append(check.Families, CheckFamily{
			l.ID().Family, l.ID().Name, r.State, r.Detail, append([]string{}, r.Rules...),
		})
	}
	picture, err := ifwatch.List()
	if err != nil {
		check.Interfaces.Error = err.Error()
	}
	check.Interfaces.PodSide = len(picture.Interfaces)
	check.Interfaces.Uncovered = names(ifwatch.Uncovered(picture.Interfaces, c.Interfaces))
	check.Interfaces.Tunnels = names(ifwatch.Uncovered(picture.Tunnels, c.Interfaces))
	check.Protected = check.Verdict() == nil
	return check, nil
}

func names(interfaces []ifwatch.Interface) []string {
	list := []string{}
	for _, i := range interfaces {
		list = append(list, i.Name)
	}
	return list
}

// Verdict is nil if the node is protected, else ErrNotProtected or ErrUnknown; what is known to be wrong outweighs what is not
// known.
func (c Check) Verdict() error {
	unknown, supported := c.Interfaces.Error != "", false
	for _, f := range c.Families {
		supported = supported || f.State != layer.Unsupported
		unknown = unknown || f.State == layer.Unknown
		if !f.State.Protects() && f.State != layer.Unknown {
			return ErrNotProtected
		}
	}
	switch {
	case len(c.Interfaces.Uncovered) > 0 || !supported:
		return ErrNotProtected
	case unknown:
		return ErrUnknown
	}
	return nil
}

// String is the look for a person.
func (c Check) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "protected   %t\nbackend     %s\n", c.Protected, c.Backend)
	for _, f := range c.Families {
		fmt.Fprintf(&b, "%-11s %s", f.Family, f.State)
		if f.Detail != "" {
			fmt.Fprintf(&b, ": %s", f.Detail)
		}
		b.WriteByte('\n')
		for _, rule := range f.Rules {
			fmt.Fprintf(&b, "            %s\n", rule)
		}
	}
	i := c.Interfaces
	fmt.Fprintf(&b, "interfaces  %d pod-side, %d covered by no rule\n", i.PodSide, len(i.Uncovered))
	if i.PodSide == 0 && i.Error == "" {
		b.WriteString("            no pod is known here: if some run, it can't be told whether a rule covers them; try a packet from one\n")
	}
	for _, name := range i.Uncovered {
		fmt.Fprintf(&b, "            %s: %s\n", name, ifwatch.Fix(name))
	}
	for _, name := range i.Tunnels {
		fmt.Fprintf(&b, "            %s: a tunnel is a way in: what a pod sends to the node in it is forwarded; %s\n", name, ifwatch.Fix(name))
	}
	if i.Error != "" {
		fmt.Fprintf(&b, "            %s\n", i.Error)
	}
	return b.String()
}

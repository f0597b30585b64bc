// The layers that a configuration asks for.

package agent

import (
	"fmt"
	"slices"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// states are those of each layer, by its name.
var states = map[string][]layer.State{
	rules.LayerName: rules.States, route.LayerName: route.States, cgroup.LayerName: cgroup.States,
}

// newLayers makes the layers that were asked for, in each family, without touching the node; in audit mode only the one that
// can count without blocking. recorded is the backend that an agent on this node used last. selector is nil if iptables was not
// asked for or is not available; the latter is an error only if no other layer was asked for.
func newLayers(c config.Config, recorded rules.Backend) (layers []guard.Layer, selector *rules.Selector, err error) {
	for _, name := range c.Layers {
		if c.Mode == policy.AuditOnly && name != cgroup.LayerName {
			continue
		}
		var newLayer func(imds.Family) guard.Layer
		switch name {
		case rules.LayerName:
			selector, err = rules.NewSelector(c.Backend, imds.Families, recorded)
			if err != nil && len(c.Layers) == 1 {
				return nil, nil, err
			}
			newLayer = func(f imds.Family) guard.Layer { return rules.NewTable(f, selector) }
			if err != nil {
				newLayer = func(f imds.Family) guard.Layer { return absent{layer.ID{Name: name, Family: f}, err} }
			}
		case route.LayerName:
			newLayer = func(f imds.Family) guard.Layer { return route.New(f) }
		case cgroup.LayerName:
			newLayer = func(f imds.Family) guard.Layer { return cgroup.New(f, c.PodsCgroup) }
		default:
			return nil, nil, fmt.Errorf("making the layer %s: there is no such layer", name)
		}
		for _, f := range imds.Families {
			layers = append(layers, newLayer(f))
		}
	}
	return layers, selector, nil
}

func described(layers []guard.Layer) (list []metrics.Layer) {
	for _, l := range layers {
		list = append(list, metrics.Layer{ID: l.ID(), States: states[l.ID().Name]})
	}
	return list
}

// absent is a layer that this node does not support.
type absent struct {
	id  layer.ID
	why error
}

// ID implements guard.Layer.
func (a absent) ID() layer.ID { return a.id }

// Look implements guard.Layer.
func (a absent) Look(policy.Policy, func(string)) layer.Finding {
	return layer.Finding{Reading: layer.Reading{State: layer.Unsupported, Detail: a.why.Error()}}
}

// Repair implements guard.Layer. There is nothing to repair.
func (a absent) Repair(policy.Policy, layer.Finding) error { return a.why }

// ids names a layer in some families, or in all if none is given.
func ids(name string, families ...imds.Family) (list []layer.ID) {
	if len(families) == 0 {
		families = imds.Families
	}
	for _, f := range families {
		list = append(list, layer.ID{Name: name, Family: f})
	}
	return list
}

// judgeOnly judges the layers of one name alone, without further evidence.
func judgeOnly(s guard.Status, name string) guard.Status {
	return guard.Judge(slices.DeleteFunc(slices.Clone(s.Layers), func(l guard.LayerStatus) bool { return l.Name != name }), guard.Evidence{})
}

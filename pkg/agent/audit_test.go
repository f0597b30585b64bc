package agent

import (
	"testing"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/node"
)

// In audit mode no pod waits for the node to be protected, and no node is said to be protected, whatever the layers' states.
func TestAuditModeAdmits(t *testing.T) {
	for _, s := range []layer.State{layer.Auditing, layer.Missing, layer.Unknown, layer.Unsupported, layer.Enforced} {
		var read []guard.LayerStatus
		for _, f := range imds.Families {
			read = append(read, guard.LayerStatus{ID: layer.ID{Name: "cgroup", Family: f}, Reading: layer.Reading{State: s, SocketsOnly: true}})
		}
		status := guard.Judge(read, guard.Evidence{Auditing: true})
		if !admits(status) || status.Protected {
			t.Errorf("%s: %+v", s, status)
		}
		if c := node.Judge(status, node.Coverage{Uncovered: []string{"cali1"}}); c.Reason != node.ReasonAuditing {
			t.Errorf("%s: %+v", s, c)
		}
	}
}

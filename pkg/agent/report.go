// The agent's report on itself and on who asks.

package agent

import (
	"cmp"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/report"
)

func (a *agent) report() report.Node {
	s := a.status()
	host, _ := os.Hostname()
	condition := node.Judge(s, *a.cluster.coverage.Load())
	n := report.Node{
		Node: cmp.Or(a.config.NodeName, host), Version: a.version, Mode: string(a.config.Mode), Condition: condition.Message,
		Protected: condition.Status == corev1.ConditionTrue, Degraded: s.Degraded, Layers: []report.Layer{}, Workloads: []report.Workload{},
	}
	var incomplete []string
	counts := false
	for _, l := range s.Layers {
		n.Layers = append(n.Layers, report.Layer{Family: l.Family, Layer: l.Name, State: l.State.String(), Detail: l.Detail})
		if l.Name == cgroup.LayerName {
			counts = true
			if l.State != layer.Enforced && l.State != layer.Auditing {
				incomplete = append(incomplete, fmt.Sprintf("%s attempts may be missing: the cgroup layer is %s: %s", l.Family, l.State, l.Detail))
			}
		}
	}
	if !counts {
		incomplete = append(incomplete, "attempts can't be seen without the "+cgroup.LayerName+" layer")
	}
	if !a.config.Attribution {
		incomplete = append(incomplete, "attempts are not recorded with --attribution=off")
	}
	if a.asking != nil {
		n.Since, n.Workloads = a.asking.ledger.Workloads()
		if _, known := a.listPods(); !known {
			incomplete = append(incomplete, "pods have no names: the API server has not listed them yet")
		} else if a.pods == nil {
			incomplete = append(incomplete, "pods have no names without the Kubernetes API")
		}
	}
	if a.asking != nil && a.config.HostNetwork == policy.Allow {
		incomplete = append(incomplete, "hostNetwork pods are let through and not counted (--host-network-pods=audit counts them)")
	}
	if a.asking != nil {
		if left := a.asking.ledger.LeftOut(); left > 0 {
			incomplete = append(incomplete, fmt.Sprintf("%d attempts are missing from the rows, because too many pods have asked", left))
		}
	}
	n.Incomplete = strings.Join(incomplete, "; ")
	return n
}

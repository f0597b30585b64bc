//go:build e2e

// Scenario 11: the layer of sockets, on the cgroups that kubelet and runc make.

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// A pod's socket is refused at once, from its first call on and whatever becomes of the agent; one in the host's network is
// not. The cleanup gives it back. By the default chart and by the hardened one, whose agent has no more than CAP_BPF for it.
func TestSockets(t *testing.T) {
	for _, hardened := range []string{"false", "true"} {
		t.Run("hardened="+hardened, func(t *testing.T) {
			begin(t)
			node.Helm(t, "install", "imds-guard", chart(t), "--create-namespace", "--set", "hardened="+hardened)
			node.WaitAgent(t)
			node.waitAllLayers(t)
			for _, family := range []string{"ipv4", "ipv6"} {
				if in := node.Metric(t, "imds_guard_rule_state", "layer=cgroup", "family="+family, "state=enforced"); in != 1 {
					t.Fatalf("%s: the layer cgroup is not in force", family)
				}
			}
			asker, control := node.RunAsker(t, "asker", false), node.RunAsker(t, "control", true)
			asker.waitRefused(t, "while the agent runs")
			step(t, "the agent is killed, and updated")
			kill(t, node.AgentPID(t))
			asker.waitRefused(t, "after its end")
			node.WaitAgent(t)
			node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "image.tag=v0.1.1")
			node.waitAgent(t, "the other version", isVersion("v0.1.1"))
			asker.waitRefused(t, "by the next version")
			if counted := node.Metric(t, "imds_guard_blocked_packets_total", "layer=cgroup", "family=ipv4"); counted < 40 {
				t.Errorf("%v calls were counted", counted)
			}
			if drifts := node.Metric(t, "imds_guard_drift_total", "layer=cgroup"); drifts != 0 {
				t.Errorf("%v drifts: nobody has touched anything", drifts)
			}
			asker.Never(t)
			control.WaitAnswers(t, 5)

			step(t, "helm uninstall, with cleanup.onUninstall")
			node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "cleanup.onUninstall=true")
			node.WaitAgent(t)
			node.Helm(t, "uninstall", "imds-guard")
			node.waitCleanup(t)
			node.noRules(t)
			asker.WaitAnswers(t, 5)
			node.Kubectl(t, "-n", namespace, "delete", "daemonset", "imds-guard-cleanup")
		})
	}
}

// waitRefused waits until more calls of the pod are refused.
func (a *Asker) waitRefused(t *testing.T, when string) {
	t.Helper()
	before := a.refusals(t)
	wait(t, "the pod to be refused "+when, func() error {
		if now := a.refusals(t) - before; now < 20 {
			return fmt.Errorf("%d calls were", now)
		}
		return nil
	})
}

// refusals counts the pod's calls that its own kernel has refused, by its log.
func (a *Asker) refusals(t *testing.T) (n int) {
	t.Helper()
	for _, life := range a.node.containerLog(t, a.uid, "main") {
		n += strings.Count(life, "operation not permitted")
	}
	return n
}

//go:build e2e

// Scenario 17: `helm test` tells a guarded node from an open one, and both from one without a metadata service.

package e2e

import (
	"strings"
	"testing"
)

// `helm test` passes while pods are kept away, whatever becomes of pods in the node's network. It fails if a pod is answered, and if
// there is nothing to keep pods away from: by its control, or, where that is blocked, for want of a refusal.
func TestHelmTest(t *testing.T) {
	begin(t)
	fails := func(when, pod, says string) {
		t.Helper()
		if out, err := node.helm("test", "imds-guard", "--timeout=3m"); err == nil {
			t.Errorf("%s, helm test has passed: %s", when, out)
		}
		if log := node.Kubectl(t, "-n", namespace, "logs", pod); !strings.Contains(log, says) {
			t.Errorf("%s, the pod %s says %s", when, pod, log)
		}
	}
	const control, test = "imds-guard-test-control", "imds-guard-test"

	step(t, "pods are kept away")
	node.Helm(t, "install", "imds-guard", chart(t), "--create-namespace")
	node.WaitAgent(t)
	node.Helm(t, "test", "imds-guard", "--timeout=3m")
	if log := node.Kubectl(t, "-n", namespace, "logs", control); !strings.Contains(log, imdsIP+": answered") {
		t.Errorf("the control says %s", log)
	}
	if log := node.Kubectl(t, "-n", namespace, "logs", test); !strings.Contains(log, "proven: pods are kept away") {
		t.Errorf("the test says %s", log)
	}

	step(t, "the metadata service is off")
	node.Component(t, "stop", "imds")
	fails("without a metadata service", control, "there is no metadata service here")
	node.Component(t, "start", "imds")

	step(t, "pods in the node's network are blocked, the release's own too")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "agent.hostNetworkPods=block",
		"--set", "agent.hostNetworkNamespaces={other}")
	node.waitAgent(t, "the agent that blocks", hasArgs("--interface=eni+", "--host-network-pods=block", "--host-network-namespaces=other"))
	node.waitAllLayers(t)
	node.Helm(t, "test", "imds-guard", "--timeout=3m")

	step(t, "pods are answered")
	node.Kubectl(t, "-n", namespace, "delete", "daemonset", "imds-guard", "--cascade=foreground")
	node.removeRules(t)
	fails("without a rule", test, "IMDS is not blocked here")
}

//go:build e2e

// Scenario 13: pods in the node's network, which the API server knows.

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// With block, a pod in the node's network is refused and named, and stays so without API server and agent; one of a namespace that
// is let through is served, from its start on. With audit all are, and named.
func TestHostNetworkPods(t *testing.T) {
	begin(t)
	asker := node.RunAsker(t, "asker", true)
	asker.WaitAnswers(t, 3)

	step(t, "block")
	node.Helm(t, "install", "imds-guard", chart(t), "--create-namespace", "--set", "agent.hostNetworkPods=block")
	pod := node.WaitAgent(t)
	node.waitAllLayers(t)
	named := func(message string) {
		t.Helper()
		wait(t, "the agent to name it", func() error {
			for _, line := range strings.Split(strings.Join(node.agentLog(t, pod), "\n"), "\n") {
				if strings.Contains(line, message) && strings.Contains(line, `"pod":"asker","hostNetwork":true,"uid":"`+string(asker.uid)+`"`) {
					return nil
				}
			}
			return fmt.Errorf("it says nothing of %s", asker.uid)
		})
	}
	asker.waitRefused(t, "by its name")
	named("and was refused")
	quiet := asker.Answers()
	agent := node.AgentPID(t) // which the API server tells

	step(t, "the API server stops, and the agent is killed")
	node.Component(t, "stop", "kube-apiserver", "KILL") // told to end, it takes a minute
	t.Cleanup(func() { node.apiServerBack(t) })
	asker.waitRefused(t, "without the API server")
	kill(t, agent)
	asker.waitRefused(t, "after the agent's end")
	wait(t, "a new agent", func() error {
		_, err := node.metric("imds_guard_protected")
		return err
	})
	asker.waitRefused(t, "by an agent that has not reached the API server")
	node.apiServerBack(t)
	if answers := asker.Answers() - quiet; answers != 0 {
		t.Errorf("the pod got %d answers", answers)
	}

	step(t, "its namespace is let through")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "agent.hostNetworkNamespaces={default}")
	asker.WaitAnswers(t, 5)
	node.RunAsker(t, "late", true).WaitAnswers(t, 3)

	step(t, "audit")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "agent.hostNetworkNamespaces={kube-system}",
		"--set", "agent.hostNetworkPods=audit")
	pod = node.waitAgent(t, "the agent that audits", hasArgs("--interface=eni+", "--host-network-pods=audit"))
	named("and would have been refused")
	asker.WaitAnswers(t, 5)
}

//go:build e2e

// Scenario 3: a new node takes no pod before its rules are in.

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A new node registers with the start-up taint. A pod waits. The agent comes, the taint goes, the pod starts, and never gets
// an answer, from its first packet on. Then the same with a node that joins a cluster which has imds-guard already.
func TestTaintedNode(t *testing.T) { forEachVariant(t, taintedNode) }

func taintedNode(t *testing.T, v variant) {
	node.Replace(t)
	node.StartKubelet(t)
	control := node.RunAsker(t, "control", true)
	asker := node.CreateAsker(t, "asker", false)

	step(t, "the new node is tainted: the pod waits")
	control.WaitAnswers(t, 20)
	if err := waitsForTaint(t, asker); err != nil {
		t.Error(err)
	}

	since := time.Now()
	node.Install(t, v)
	protectedAndUntainted(t, since)
	asker.WaitAttempts(t, 50)
	asker.Never(t)
	control.WaitAnswers(t, 20)

	node.Replace(t)
	step(t, "a node joins: the DaemonSet and the pod wait for it")
	joined := node.CreateAsker(t, "joined", false)
	control = node.CreateAsker(t, "control", true)
	since = time.Now()
	node.StartKubelet(t)
	figures.add(t, "from the agent's pod on a fresh node to the condition True", seconds(protectedAndUntainted(t, since)))
	joined.WaitAttempts(t, 50)
	joined.Never(t)
	control.WaitAnswers(t, 20)
	if seen := node.podConnections(t); seen != 0 {
		t.Errorf("the metadata service saw %d connections from pods", seen)
	}
}

// waitsForTaint checks that a pod is not scheduled because of the start-up taint.
func waitsForTaint(t *testing.T, a *Asker) error {
	t.Helper()
	pod, err := node.pod(t, a.name, a.uid)
	if err != nil {
		return err
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			step(t, "%s waits: %s", a.name, c.Message)
			if pod.Spec.NodeName == "" && pod.Status.Phase == corev1.PodPending {
				return nil
			}
		}
	}
	return fmt.Errorf("%s should wait, and is %s on the node %q", a.name, pod.Status.Phase, pod.Spec.NodeName)
}

// protectedAndUntainted waits until the agent has set the condition, later than since, and removed the taint. It returns how
// long the condition took from when the agent's pod was there.
func protectedAndUntainted(t *testing.T, since time.Time) time.Duration {
	t.Helper()
	wait(t, "the agent's pod", func() error {
		pod, err := node.AgentPod(t)
		if err == nil && pod.Spec.NodeName == "" {
			err = fmt.Errorf("it is not scheduled")
		}
		return err
	})
	took := wait(t, "the condition", func() error {
		c, err := node.Condition(t)
		if err == nil && (c.Status != corev1.ConditionTrue || c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second))) {
			err = fmt.Errorf("it is %+v", c)
		}
		return err
	})
	wait(t, "the taint to go", func() error {
		tainted, err := node.HasTaint(t)
		if err == nil && tainted {
			err = fmt.Errorf("it is there")
		}
		return err
	})
	return took
}

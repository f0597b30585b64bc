//go:build e2e

// A reboot: the rules go with the node, and come back before any pod that doesn't tolerate the taint.

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The node comes back with the taint, with the effect NoExecute: the kubelet rejects the pods that are still bound to it,
// where NoSchedule would stop only the scheduler. The agent removes the taint when the rules are in. (It is set while the node
// is down: an agent that runs takes it off.)
func TestReboot(t *testing.T) { forEachVariant(t, reboot) }

func reboot(t *testing.T, v variant) {
	node.Install(t, v)
	node.WaitAgent(t)
	control := node.RunAsker(t, "control", true)
	asker := node.RunAsker(t, "asker", false)
	asker.WaitAttempts(t, 20)
	asker.Never(t)

	// Nobody evicts the pod: the kubelet alone has to keep it from running.
	node.Reboot(t, "kube-controller-manager")
	node.Kubectl(t, "taint", "node", node.Name, taint+"=:NoExecute")
	if rules := node.Exec(t, "iptables-nft", "-S", "FORWARD"); strings.Contains(rules, imdsIP) {
		t.Fatalf("the rules have survived the reboot: %s", rules)
	}
	since := time.Now()
	node.StartKubelet(t)
	wait(t, "the kubelet to reject the pod", func() error {
		pod, err := node.pod(t, asker.name, asker.uid)
		if err == nil && (pod.Status.Phase != corev1.PodFailed || pod.Status.Reason != "TaintToleration") {
			err = fmt.Errorf("it is %s: %s", pod.Status.Phase, pod.Status.Reason)
		}
		return err
	})
	protectedAndUntainted(t, since)

	step(t, "the node is protected again, and untainted: pods run on it")
	node.Component(t, "start", "kube-controller-manager")
	again := node.RunAsker(t, "again", false)
	again.WaitAttempts(t, 50)
	again.Never(t)
	control.WaitAnswers(t, 20)
	if seen := node.podConnections(t); seen != 0 {
		t.Errorf("the metadata service saw %d connections from pods", seen)
	}
}

//go:build e2e

// Scenario 9: an agent that isn't in the node's network namespace, because something has taken `hostNetwork` from its pod, as
// an admission webhook can. Rules there would protect nobody, so it must not say that they do.

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The node is tainted, and the agent in a network namespace of its own: it runs, says why, and is never ready; the taint stays
// and no pod starts. With the manifest as it should be the node is protected, and then the pod starts.
func TestWrongNetworkNamespace(t *testing.T) {
	for _, mode := range []struct {
		name   string
		values []string
		// What the kubelet says of each of its looks at the agent.
		unhealthy []string
	}{
		// Its probes ask the node's loopback, where nobody is: the agent has not even started, for the kubelet.
		{"as shipped", nil, []string{"Startup probe failed"}},
		// Its probes reach the agent, which says itself that it is alive and not ready.
		{"probes reach it", []string{"agent.healthBindAddress="}, []string{"Readiness probe failed", "503"}},
	} {
		t.Run(mode.name, func(t *testing.T) {
			begin(t)
			node.Kubectl(t, "taint", "node", node.Name, taint+"=:NoSchedule")
			control, asker := node.RunAsker(t, "control", true), node.CreateAsker(t, "asker", false)

			step(t, "the agent without hostNetwork")
			node.Apply(t, node.withoutHostNetwork(t, mode.values...))
			wrong := node.runningAgent(t)
			if wrong.Spec.HostNetwork {
				t.Fatal("the agent has hostNetwork")
			}
			says := func(line string) bool {
				return strings.Contains(line, "network namespace") && strings.Contains(line, "hostNetwork")
			}
			wait(t, "the agent to say why it guards nothing", func() error {
				if lives := node.agentLog(t, wrong); !says(strings.Join(lives, "")) {
					return fmt.Errorf("it says %q", lives)
				}
				return nil
			})
			wait(t, "it to be alive and not ready, by its own word", func() error {
				return errors.Join(statusOf(wrong, "/healthz", http.StatusOK), statusOf(wrong, "/readyz", http.StatusServiceUnavailable))
			})
			wait(t, "the kubelet to have seen that it is not ready, more than once", func() error {
				return node.unhealthy(t, wrong, 3, mode.unhealthy...)
			})

			step(t, "nothing was guarded, and nothing is said to be")
			now := node.runningAgent(t)
			if now.UID != wrong.UID {
				t.Errorf("the agent's pod is another one: %s, not %s", now.Name, wrong.Name)
			}
			if err := podReady(now); err == nil {
				t.Error("the agent's pod is ready")
			}
			if tainted, err := node.HasTaint(t); err != nil || !tainted {
				t.Errorf("the taint is gone: %v", err)
			}
			if err := waitsForTaint(t, asker); err != nil {
				t.Error(err)
			}
			if c, err := node.Condition(t); err == nil && c.Status == corev1.ConditionTrue {
				t.Errorf("the condition is %+v", c)
			}
			node.noRules(t)
			node.checkInWrongNamespace(t, wrong)
			for _, life := range node.agentLog(t, wrong) {
				said := 0
				for line := range strings.Lines(life) {
					if says(line) {
						said++
					}
				}
				if said != 1 {
					t.Errorf("the agent has said %d times why it guards nothing: %s", said, life)
				}
			}

			step(t, "the manifest as it should be")
			since := time.Now()
			node.Install(t, standard)
			node.waitAgent(t, "another agent to be ready", anotherThan(wrong))
			protectedAndUntainted(t, since)
			asker.WaitAttempts(t, 50)
			asker.Never(t)
			control.WaitAnswers(t, 5)
		})
	}
}

// namespaceManifest is what an administrator makes before the chart's objects: see deploy/render.
const namespaceManifest = `{apiVersion: v1, kind: Namespace, metadata: {name: imds-guard}}
`

// withoutHostNetwork returns the manifest of the agent with some values of the chart, less the one line.
func (n *Node) withoutHostNetwork(t *testing.T, values ...string) string {
	t.Helper()
	arguments := []string{"template", "imds-guard", chart(t), "--namespace", namespace, "--skip-tests",
		"--set", "image.repository=" + image}
	for _, value := range values {
		arguments = append(arguments, "--set", value)
	}
	// Its standard output alone: helm may have warnings.
	manifest, err := stdout(exec.Command("../../bin/helm", arguments...))
	if err != nil {
		t.Fatal(err)
	}
	const line = "      hostNetwork: true\n"
	if strings.Count(manifest, line) != 1 {
		t.Fatalf("the manifest has %d lines %q", strings.Count(manifest, line), line)
	}
	return namespaceManifest + strings.Replace(manifest, line, "", 1)
}

// runningAgent waits until the agent's container runs, ready or not, and returns the pod.
func (n *Node) runningAgent(t *testing.T) (running *corev1.Pod) {
	t.Helper()
	wait(t, "the agent to run", func() error {
		pod, err := n.AgentPod(t)
		if err != nil {
			return err
		}
		for _, c := range pod.Status.ContainerStatuses {
			if c.State.Running != nil && pod.Status.PodIP != "" {
				running = pod
				return nil
			}
		}
		return fmt.Errorf("it is %s: %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
	})
	return running
}

// statusOf returns nil if the agent in this pod answers so, at the pod's own address.
func statusOf(pod *corev1.Pod, path string, want int) error {
	response, err := node.HTTP.Get("http://" + pod.Status.PodIP + ":9169" + path)
	if err != nil {
		return err
	}
	if response.StatusCode != want {
		err = fmt.Errorf("%s is %s, not %d", path, response.Status, want)
	}
	return errors.Join(err, response.Body.Close())
}

// unhealthy returns nil if the kubelet has said at least so often of this pod, told by its UID, that it is unhealthy, in all
// of these words.
func (n *Node) unhealthy(t *testing.T, pod *corev1.Pod, atLeast int32, words ...string) error {
	t.Helper()
	events, err := n.Client.CoreV1().Events(pod.Namespace).List(t.Context(), metav1.ListOptions{
		FieldSelector: "reason=Unhealthy,involvedObject.uid=" + string(pod.UID)})
	if err != nil {
		return err
	}
	times, messages := int32(0), []string{}
	for _, e := range events.Items {
		missing := false
		for _, word := range words {
			missing = missing || !strings.Contains(e.Message, word)
		}
		if messages = append(messages, e.Message); !missing {
			times += e.Count
		}
	}
	if times < atLeast {
		return fmt.Errorf("it has said so %d times, and %q", times, messages)
	}
	return nil
}

// checkInWrongNamespace runs `imds-guard check` in the pod: it can't tell, and says why.
func (n *Node) checkInWrongNamespace(t *testing.T, pod *corev1.Pod) {
	t.Helper()
	out, err := n.Try("kubectl", "-n", pod.Namespace, "exec", pod.Name, "--", "imds-guard", "check", "--interface=eni+")
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("check has not exited with 2: %v", err)
	}
	if !strings.Contains(out, "network namespace") {
		t.Errorf("check doesn't say that it is in the wrong network namespace: %s", out)
	}
}

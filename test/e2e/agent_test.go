//go:build e2e

// imds-guard on the node: installed as its documents say, looked at, and taken away between two tests.

package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	namespace = "imds-guard"
	image     = "your-registry.invalid/imds-guard" // as in the plain manifests, see node/images.sh
	taint     = "imds-guard.io/agent-not-ready"
	condition = "IMDSProtected"
)

// variant is one of the manifests that we ship.
type variant struct{ name, manifest string }

var (
	standard = variant{"default", "../../deploy/daemonset.yaml"}
	hardened = variant{"hardened", "../../deploy/daemonset-hardened.yaml"}
)

// forEachVariant runs a test with the default manifest and with the hardened one.
func forEachVariant(t *testing.T, test func(*testing.T, variant)) {
	for _, v := range []variant{standard, hardened} {
		t.Run(v.name, func(t *testing.T) {
			begin(t)
			test(t, v)
		})
	}
}

// begin makes sure that a test starts and leaves without imds-guard, its rules, what it said of the node, and pods of another
// test.
func begin(t *testing.T) {
	t.Helper()
	node.clean(t)
	if info, err := os.Stat(filepath.Join(node.State, "log/imds.log")); err == nil {
		node.imdsLogBegin = info.Size()
	}
	t.Cleanup(func() {
		if t.Failed() {
			node.dump(os.Stderr)
		}
		node.clean(t)
	})
}

// clean takes everything away that a test may have left, without the help of the code under test.
func (n *Node) clean(t *testing.T) {
	t.Helper()
	for _, component := range components {
		n.Component(t, "start", component)
	}
	if err := n.waitReady(time.Now()); err != nil {
		t.Fatalf("cleaning up: %v", err)
	}
	script := `
kubectl delete deployment,daemonset,job,pod --all -n default --grace-period=1 --ignore-not-found
kubectl delete namespace imds-guard --ignore-not-found
kubectl delete clusterrole,clusterrolebinding,validatingadmissionpolicy,validatingadmissionpolicybinding \
  -l app.kubernetes.io/name=imds-guard --ignore-not-found
# Those of docs/examples, which have no label.
kubectl delete validatingadmissionpolicy,validatingadmissionpolicybinding imds-guard-host-network imds-guard-startup-taint --ignore-not-found
kubectl delete role,rolebinding -n default -l app.kubernetes.io/name=imds-guard --ignore-not-found
for node in $(kubectl get nodes -o name); do
  kubectl taint "$node" ` + taint + `- || true
  # Or the next test would take it for what its own agent says.
  kubectl patch "$node" --subresource=status -p '{"status": {"conditions": [{"type": "` + condition + `", "$patch": "delete"}]}}'
done
rm -rf /run/imds-guard
`
	n.Exec(t, "bash", "-euo", "pipefail", "-c", script)
	// kubectl deletes one by one. (The test's context has ended when it cleans up.)
	events := n.Client.CoreV1().Events("default")
	if err := events.DeleteCollection(context.Background(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatalf("deleting the events: %v", err)
	}
	n.removeRules(t)
}

// removeRules removes what the agent puts into FORWARD and into the routing, without its help.
func (n *Node) removeRules(t *testing.T) {
	t.Helper()
	n.Exec(t, "bash", "-euo", "pipefail", "-c", `
for backend in nft legacy; do for family in ip ip6; do
  # To list a legacy table that isn't there would make it.
  [ $backend = nft ] || grep -q filter /proc/net/${family}_tables_names || continue
  rules=$(${family}tables-$backend -w -S FORWARD)
  while read -r _ rule; do
    case $rule in *169.254.169.254/32*|*fd00:ec2::254/128*) ${family}tables-$backend -w -D $rule ;; esac
  done <<<"$rules"
done; done
for family in 4 6; do
  while ip -$family rule del pref 0 not iif lo lookup 169254 2>/dev/null; do :; done
  ip -$family route flush table 169254 2>/dev/null || true
  ip link del imds-guard$family 2>/dev/null || true
done
rm -rf /sys/fs/bpf/imds-guard
`)
}

// Install applies the variant's manifest, as the documents say.
func (n *Node) Install(t *testing.T, v variant) {
	t.Helper()
	manifest, err := filepath.Abs(v.manifest)
	if err != nil {
		t.Fatal(err)
	}
	n.Kubectl(t, "apply", "-f", manifest)
}

// AgentPod returns the agent's pod, the one that isn't being deleted.
func (n *Node) AgentPod(t *testing.T) (*corev1.Pod, error) {
	t.Helper()
	pods, err := n.Client.CoreV1().Pods(namespace).List(t.Context(),
		metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=imds-guard"})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if pods.Items[i].DeletionTimestamp == nil {
			return &pods.Items[i], nil
		}
	}
	return nil, fmt.Errorf("the agent has no pod")
}

// WaitAgent waits until the agent's pod is ready, which means that the rules were read back, and returns it.
func (n *Node) WaitAgent(t *testing.T) *corev1.Pod {
	t.Helper()
	return n.waitAgent(t, "the agent to be ready", func(*corev1.Pod) error { return nil })
}

// waitAgent waits until the agent's pod is ready and as wanted.
func (n *Node) waitAgent(t *testing.T, what string, wanted func(*corev1.Pod) error) *corev1.Pod {
	t.Helper()
	var ready *corev1.Pod
	wait(t, what, func() error {
		pod, err := n.AgentPod(t)
		if err != nil {
			return err
		}
		if err := podReady(pod); err != nil {
			return err
		}
		ready = pod
		return wanted(pod)
	})
	return ready
}

// agentLog returns the log of the agent's container, one text for each of its lives. Read from the node's disk, by the pod's
// UID.
func (n *Node) agentLog(t *testing.T, pod *corev1.Pod) (lives []string) {
	t.Helper()
	return n.containerLog(t, pod.UID, "imds-guard")
}

// containerLog returns the log of a pod's container, one text for each of its lives.
func (n *Node) containerLog(t *testing.T, pod types.UID, container string) (lives []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(n.State, "pods", "*_"+string(pod), container, "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		lives = append(lives, string(text))
	}
	return lives
}

// told returns how often each event about the node was recorded for a reason, by the event's UID, and what they say.
func (n *Node) told(t *testing.T, reason string) (times map[types.UID]int32, messages map[types.UID]string, err error) {
	t.Helper()
	events, err := n.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason})
	if err != nil {
		return nil, nil, err
	}
	times, messages = map[types.UID]int32{}, map[types.UID]string{}
	for _, e := range events.Items {
		if e.InvolvedObject.Kind == "Node" && e.InvolvedObject.Name == n.Name {
			times[e.UID], messages[e.UID] = e.Count, e.Message
		}
	}
	return times, messages, nil
}

// AgentPID returns the agent's process, as this machine numbers it.
func (n *Node) AgentPID(t *testing.T) int {
	t.Helper()
	pod := n.WaitAgent(t)
	id := strings.TrimPrefix(pod.Status.ContainerStatuses[0].ContainerID, "containerd://")
	files, err := filepath.Glob("/proc/[0-9]*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(text), id) {
			continue // has ended, or is another one's
		}
		comm, err := os.ReadFile(filepath.Join(filepath.Dir(file), "comm"))
		if err == nil && strings.TrimSpace(string(comm)) == "imds-guard" {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
	}
	t.Fatalf("no process imds-guard in the container %s", id)
	return 0
}

// Condition returns the node's condition IMDSProtected.
func (n *Node) Condition(t *testing.T) (corev1.NodeCondition, error) {
	t.Helper()
	object, err := n.Client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		return corev1.NodeCondition{}, err
	}
	for _, c := range object.Status.Conditions {
		if c.Type == condition {
			return c, nil
		}
	}
	return corev1.NodeCondition{}, fmt.Errorf("the node has no condition %s", condition)
}

// HasTaint tells whether the node has the start-up taint.
func (n *Node) HasTaint(t *testing.T) (bool, error) {
	t.Helper()
	object, err := n.Client.CoreV1().Nodes().Get(t.Context(), n.Name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	for _, have := range object.Spec.Taints {
		if have.Key == taint {
			return true, nil
		}
	}
	return false, nil
}

// Metric scrapes the agent and returns the sum of a metric's series that have all of these labels, given as name=value.
func (n *Node) Metric(t *testing.T, name string, labels ...string) float64 {
	t.Helper()
	value, err := n.metric(name, labels...)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func (n *Node) metric(name string, labels ...string) (float64, error) {
	response, err := n.HTTP.Get("http://" + nodeIP + ":9169/metrics")
	if err != nil {
		return 0, fmt.Errorf("scraping the agent: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(response.Body)
		return 0, fmt.Errorf("scraping the agent: %s: %s", response.Status, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		return 0, fmt.Errorf("reading the agent's metrics: %w", err)
	}
	family, ok := families[name]
	if !ok {
		return 0, fmt.Errorf("the agent has no metric %s", name)
	}
	sum := 0.0
	for _, m := range family.Metric {
		matching := 0
		for _, pair := range m.Label {
			for _, label := range labels {
				if pair.GetName()+"="+pair.GetValue() == label {
					matching++
				}
			}
		}
		if matching == len(labels) {
			sum += m.GetGauge().GetValue() + m.GetCounter().GetValue() + m.GetUntyped().GetValue()
		}
	}
	return sum, nil
}

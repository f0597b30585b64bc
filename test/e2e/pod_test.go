//go:build e2e

// Pods with real packets.

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/imds-guard/imds-guard/test/e2e/witness"
)

// Pod is what a test wants of a pod. The zero value of a field is Kubernetes' default. A pod that is there is told from others
// by its UID: the next test's has the same name.
type Pod struct {
	Name        string
	Image       string
	Args        []string
	HostNetwork bool
	Privileged  bool
	Tolerant    bool // runs on a node with any taint
}

// The images that node/images.sh makes beside our own.
const (
	toolImage   = "e2e.local/tool:1"
	clientImage = "e2e.local/client:1" // with curl; sleeps
)

// manifest returns the pod as YAML.
func (p Pod) manifest() string {
	// Neither a token nor variables of services: nothing of a role is in this pod. What it is itself, an Asker has to say.
	text := fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: %[1]s}}, spec: {
  hostNetwork: %t, terminationGracePeriodSeconds: 0, automountServiceAccountToken: false, enableServiceLinks: false,
  dnsPolicy: Default,
  containers: [{name: main, image: "%s", imagePullPolicy: Never, securityContext: {privileged: %t}, env: [
    {name: POD_UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}},
    {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]`, p.Name, p.HostNetwork, p.Image, p.Privileged)
	if p.Tolerant {
		text = strings.Replace(text, "containers:", "tolerations: [{operator: Exists}], containers:", 1)
	}
	if len(p.Args) > 0 {
		text += fmt.Sprintf(", args: [%s]", strings.Join(quoted(p.Args), ", "))
	}
	return text + "}]}}\n"
}

func quoted(words []string) []string {
	var q []string
	for _, word := range words {
		q = append(q, strconv.Quote(word))
	}
	return q
}

// CreatePod creates the pod in the namespace default and doesn't wait for it. It is deleted after the test.
func (n *Node) CreatePod(t *testing.T, p Pod) types.UID {
	t.Helper()
	return n.create(t, p.manifest())[0]
}

// create creates what the manifests describe, and returns the UIDs. That something of the name is there is an error, where
// `kubectl apply` would take an earlier test's for it.
func (n *Node) create(t *testing.T, manifests ...string) []types.UID {
	t.Helper()
	cmd := n.command("kubectl", "create", "-f", "-", "-o", `jsonpath={.metadata.uid}{"\n"}`)
	cmd.Stdin = strings.NewReader(strings.Join(manifests, "\n---\n"))
	out, err := stdout(cmd)
	if err != nil {
		t.Fatal(err)
	}
	var uids []types.UID
	for _, uid := range strings.Fields(out) {
		uids = append(uids, types.UID(uid))
	}
	if len(uids) != len(manifests) {
		t.Fatalf("created %d objects, and kubectl named %q", len(manifests), out)
	}
	return uids
}

// RunPod creates the pod and waits until it runs.
func (n *Node) RunPod(t *testing.T, p Pod) {
	t.Helper()
	n.WaitRunning(t, p.Name, n.CreatePod(t, p))
}

// WaitRunning waits until the pod's containers are ready.
func (n *Node) WaitRunning(t *testing.T, name string, uid types.UID) {
	t.Helper()
	wait(t, "pod "+name+" to run", func() error {
		pod, err := n.pod(t, name, uid)
		if err != nil {
			return err
		}
		return podReady(pod)
	})
}

// pod returns a pod of the namespace default.
func (n *Node) pod(t *testing.T, name string, uid types.UID) (*corev1.Pod, error) {
	t.Helper()
	pod, err := n.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
	if err == nil && pod.UID != uid {
		err = fmt.Errorf("pod %s is another one than was created: %s, not %s", name, pod.UID, uid)
	}
	return pod, err
}

func podReady(pod *corev1.Pod) error {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue && pod.DeletionTimestamp == nil {
			return nil
		}
	}
	return fmt.Errorf("pod %s is not ready: %s %s %v", pod.Name, pod.Status.Phase, pod.Status.Reason,
		pod.Status.ContainerStatuses)
}

// Asker is a pod that asks the metadata service ten times a second from its first moment on, see tool/ask.go. What it
// counted is read from its log on the node's disk, so that it is known without the API server too.
type Asker struct {
	node *Node
	name string
	uid  types.UID
}

// CreateAsker creates the pod and doesn't wait for it. In the host's network it is the control: nobody blocks it, so its
// answers prove that the service was there. No taint stops it. Flags, such as -every, change how it asks: see tool/ask.go.
func (n *Node) CreateAsker(t *testing.T, name string, hostNetwork bool, flags ...string) *Asker {
	t.Helper()
	pod := Pod{Name: name, Image: toolImage, Args: append([]string{"ask"}, flags...), HostNetwork: hostNetwork, Tolerant: hostNetwork}
	return &Asker{n, name, n.CreatePod(t, pod)}
}

// RunAsker creates the pod and waits until it has asked.
func (n *Node) RunAsker(t *testing.T, name string, hostNetwork bool, flags ...string) *Asker {
	t.Helper()
	a := n.CreateAsker(t, name, hostNetwork, flags...)
	a.WaitAttempts(t, 1)
	return a
}

// Attempts returns how often the pod has asked, in all of its containers' lives.
func (a *Asker) Attempts() int { return a.account().Attempts }

// Answers returns how often it was answered. A connection is an answer already.
func (a *Asker) Answers() int { return a.account().Answers }

func (a *Asker) account() witness.Account {
	return witness.ReadPod(filepath.Join(a.node.State, "pods"), string(a.uid))
}

// WaitAttempts waits until the pod has asked that many times more, and fails if it doesn't.
func (a *Asker) WaitAttempts(t *testing.T, more int) {
	t.Helper()
	before := a.Attempts()
	wait(t, fmt.Sprintf("%s to ask %d times more", a.name, more), func() error {
		if now := a.Attempts(); now < before+more {
			return fmt.Errorf("it asked %d times", now-before)
		}
		return nil
	})
}

// WaitAnswers waits until the pod has got that many answers more.
func (a *Asker) WaitAnswers(t *testing.T, more int) {
	t.Helper()
	before := a.Answers()
	wait(t, fmt.Sprintf("%s to get %d answers more", a.name, more), func() error {
		if now := a.Answers(); now < before+more {
			return fmt.Errorf("it got %d", now-before)
		}
		return nil
	})
}

// Never fails the test if the pod ever got an answer, by its own account or by that of the metadata service. It returns
// how often the pod has asked.
func (a *Asker) Never(t *testing.T) int {
	t.Helper()
	account := a.account()
	if account.Answers != 0 {
		t.Errorf("%s got %d answers in %d attempts, the first one: %s", a.name, account.Answers, account.Attempts,
			account.FirstAnswer)
	}
	if seen := account.Connections(a.node.imdsLog(t, 0)); seen != 0 {
		t.Errorf("the metadata service saw %d connections of %s", seen, a.name)
	}
	if account.Attempts == 0 {
		t.Errorf("%s has not asked at all", a.name)
	}
	return account.Attempts
}

// podNetwork is how the addresses of all pods begin, see pod_cidr in node/env.sh.
const podNetwork = "10.244."

// podConnections returns how many connections from pods reached the metadata service since the test began, by its own log.
// Pods of earlier tests had ended by then.
func (n *Node) podConnections(t *testing.T) int {
	t.Helper()
	return witness.ConnectionsFrom(n.imdsLog(t, n.imdsLogBegin), podNetwork)
}

// imdsLog returns the metadata service's log from an offset on.
func (n *Node) imdsLog(t *testing.T, begin int64) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.State, "log/imds.log"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text[begin:])
}

// Curl asks the metadata service from inside a pod, as somebody in it would, and returns the document or curl's error.
func (n *Node) Curl(pod, path string) (string, error) {
	out, err := n.command("kubectl", "exec", pod, "--", "curl", "-sS", "--fail", "--max-time", "2",
		"http://"+imdsIP+path).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("curl in %s: %s", pod, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// seconds prints a duration for the figures.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

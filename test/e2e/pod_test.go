//go:build e2e

// Pods with real packets.

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Pod is what a test wants of a pod. The zero value of a field is Kubernetes' default.
type Pod struct {
	Name        string
	Image       string
	Args        []string
	HostNetwork bool
	Tolerant    bool // runs on a node with any taint
}

// The images that node/images.sh makes beside our own.
const (
	toolImage   = "e2e.local/tool:1"
	clientImage = "e2e.local/client:1" // with curl; sleeps
)

// manifest returns the pod as YAML.
func (p Pod) manifest() string {
	// Neither a token nor variables of services: nothing of a role is in this pod.
	text := fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: %s, labels: {app: %[1]s}}, spec: {
  hostNetwork: %t, terminationGracePeriodSeconds: 0, automountServiceAccountToken: false, enableServiceLinks: false,
  dnsPolicy: Default,
  containers: [{name: main, image: "%s", imagePullPolicy: Never`, p.Name, p.HostNetwork, p.Image)
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
func (n *Node) CreatePod(t *testing.T, p Pod) {
	t.Helper()
	n.Apply(t, p.manifest())
}

// RunPod creates the pod and waits until it runs.
func (n *Node) RunPod(t *testing.T, p Pod) {
	t.Helper()
	n.CreatePod(t, p)
	n.WaitRunning(t, p.Name)
}

// WaitRunning waits until the pod's containers are ready.
func (n *Node) WaitRunning(t *testing.T, name string) {
	t.Helper()
	wait(t, "pod "+name+" to run", func() error {
		pod, err := n.Client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		return podReady(pod)
	})
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
}

// CreateAsker creates the pod and doesn't wait for it. In the host's network it is the control: nobody blocks it, so its
// answers prove that the service was there. No taint stops it.
func (n *Node) CreateAsker(t *testing.T, name string, hostNetwork bool) *Asker {
	t.Helper()
	n.CreatePod(t, Pod{Name: name, Image: toolImage, Args: []string{"ask"}, HostNetwork: hostNetwork, Tolerant: hostNetwork})
	return &Asker{n, name}
}

// RunAsker creates the pod and waits until it has asked.
func (n *Node) RunAsker(t *testing.T, name string, hostNetwork bool) *Asker {
	t.Helper()
	a := n.CreateAsker(t, name, hostNetwork)
	a.WaitAttempts(t, 1)
	return a
}

// Attempts returns how often the pod has asked, in all of its containers' lives.
func (a *Asker) Attempts() int { return a.counts().attempts }

// Answers returns how often it was answered. A connection is an answer already.
func (a *Asker) Answers() int { return a.counts().answers }

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
	counts := a.counts()
	if counts.answers != 0 {
		t.Errorf("%s got %d answers in %d attempts, the first one: %s", a.name, counts.answers, counts.attempts,
			counts.firstAnswer)
	}
	for _, ip := range a.addresses(t) {
		if seen := a.node.imdsConnections(t, ip+":"); seen != 0 {
			t.Errorf("the metadata service saw %d connections of %s (%s)", seen, a.name, ip)
		}
	}
	if counts.attempts == 0 {
		t.Errorf("%s has not asked at all", a.name)
	}
	return counts.attempts
}

type askerCounts struct {
	attempts, answers int
	firstAnswer       string
}

var countLine = regexp.MustCompile(`attempts=(\d+) answers=(\d+)$`)

func (a *Asker) counts() askerCounts {
	// One file for each life of the container, in one directory for each life of the pod.
	files, _ := filepath.Glob(filepath.Join(a.node.State, "pods", "default_"+a.name+"_*", "main", "*.log*"))
	slices.Sort(files)
	var sum askerCounts
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // deleted with its pod
		}
		attempts, counted, seen := 0, 0, 0
		for line := range strings.Lines(string(text)) {
			line = strings.TrimRight(line, "\n")
			if strings.Contains(line, " ANSWER to ") {
				if seen++; sum.firstAnswer == "" {
					sum.firstAnswer = line
				}
			} else if m := countLine.FindStringSubmatch(line); m != nil {
				attempts, _ = strconv.Atoi(m[1])
				counted, _ = strconv.Atoi(m[2])
			}
		}
		sum.attempts += attempts
		sum.answers += max(seen, counted)
	}
	return sum
}

// addresses returns the addresses that the pod has had, which needs the API server.
func (a *Asker) addresses(t *testing.T) []string {
	t.Helper()
	pod, err := a.node.Client.CoreV1().Pods("default").Get(t.Context(), a.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if pod.Spec.HostNetwork {
		return nil
	}
	var all []string
	for _, ip := range pod.Status.PodIPs {
		all = append(all, ip.IP)
	}
	return all
}

// podNetwork is how the addresses of all pods begin, see pod_cidr in node/env.sh.
const podNetwork = "10.244."

// imdsConnections returns how many connections reached the metadata service since the test began, by its own log, from the
// clients whose address and port begin like this. (Since the test began: an address is used again by a later pod.)
func (n *Node) imdsConnections(t *testing.T, client string) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(n.State, "log/imds.log"))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for line := range strings.Lines(string(text[n.imdsLogBegin:])) {
		if strings.Contains(line, " connection "+client) {
			count++
		}
	}
	return count
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

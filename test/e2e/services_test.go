//go:build e2e

// Scenario 6: kube-proxy rewrites its rules all the time, in both of its modes.

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// services is how many are added and deleted.
const services = 500

// kube-proxy starts in a mode, and 500 Services with an endpoint come and go, while a pod doesn't stop asking.
func TestServices(t *testing.T) {
	for _, mode := range []struct{ name, count string }{
		// What counts the services that kube-proxy has rules for, in its own words.
		{"iptables", `iptables-nft-save -t nat | grep -c '^:KUBE-SVC-' || true`},
		{"nftables", `nft list table ip kube-proxy | grep -c 'chain service-' || true`},
	} {
		t.Run(mode.name, func(t *testing.T) {
			begin(t)
			node.Install(t, standard)
			node.WaitAgent(t)
			asker, control := node.RunAsker(t, "asker", false), node.RunAsker(t, "control", true)

			step(t, "kube-proxy starts in the mode %s", mode.name)
			node.proxyMode(t, mode.name)
			known := func(enough func(int) bool) func() error {
				return func() error {
					out, err := node.Try("bash", "-c", mode.count)
					if err != nil {
						return err
					}
					if n, err := strconv.Atoi(strings.TrimSpace(out)); err != nil || !enough(n) {
						return fmt.Errorf("it has rules for %s services", out)
					}
					return nil
				}
			}
			began := time.Now()
			step(t, "adding %d services", services)
			node.addServices(t, "asker")
			wait(t, "kube-proxy to know the services", known(func(n int) bool { return n >= services }))
			step(t, "deleting them")
			node.deleteServices(t)
			wait(t, "kube-proxy to forget them", known(func(n int) bool { return n < services/10 }))
			figures.add(t, fmt.Sprintf("%d services added and deleted, in", services), seconds(time.Since(began)))

			control.WaitAnswers(t, 5)
			asker.WaitAttempts(t, 20)
			asked := asker.Never(t)
			drifts := node.Metric(t, "imds_guard_drift_total")
			figures.add(t, "attempts without an answer meanwhile; drifts noticed", fmt.Sprintf("%d; %v", asked, drifts))
			node.waitProtected(t, time.Time{})
		})
	}
}

// proxyMode starts kube-proxy again in another mode, and as it was after the test.
func (n *Node) proxyMode(t *testing.T, mode string) {
	t.Helper()
	before := n.proxyConfig(t)
	t.Cleanup(func() { n.startProxy(t, before) })
	n.startProxy(t, inMode(before, mode))
}

// inMode is a configuration of kube-proxy in another mode.
func inMode(config, mode string) string {
	return regexp.MustCompile(`(?m)^mode: .*$`).ReplaceAllString(config, "mode: "+mode)
}

// proxyConfig returns the configuration that kube-proxy has.
func (n *Node) proxyConfig(t *testing.T) string {
	t.Helper()
	config, err := os.ReadFile(n.proxyFile())
	if err != nil {
		t.Fatal(err)
	}
	return string(config)
}

func (n *Node) proxyFile() string { return filepath.Join(n.State, "kube-proxy.yaml") }

// startProxy starts kube-proxy again, with another configuration.
func (n *Node) startProxy(t *testing.T, config string) {
	t.Helper()
	if err := os.WriteFile(n.proxyFile(), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	n.Component(t, "stop", "kube-proxy")
	n.Component(t, "start", "kube-proxy")
}

// addServices adds services that lead to the pod.
func (n *Node) addServices(t *testing.T, pod string) {
	t.Helper()
	for i := range services {
		_, err := n.Client.CoreV1().Services("default").Create(t.Context(), &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("e2e-%d", i), Labels: map[string]string{"e2e": "services"}},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": pod}, Ports: []corev1.ServicePort{{Port: 80}}},
		}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { n.deleteServices(t) })
}

func (n *Node) deleteServices(t *testing.T) {
	t.Helper()
	n.Kubectl(t, "delete", "services", "-l", "e2e=services", "--wait=false")
}

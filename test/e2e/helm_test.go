//go:build e2e

// Scenario 8: the chart, by the real helm, from the install to an uninstall of each kind.

package e2e

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// The agent is installed, upgraded with other flags and rolled back, and no pod gets an answer in between. Uninstalled, it
// leaves the rules, as it says.
func TestHelm(t *testing.T) {
	begin(t)
	asker := node.RunAsker(t, "asker", false)

	step(t, "helm refuses a wrong value by its name")
	out, err := node.helm("install", "imds-guard", chart(t), "--create-namespace", "--set", "agent.verdict=maybe")
	if err == nil || !strings.Contains(out, "verdict") {
		t.Errorf("a wrong verdict: %v: %s", err, out)
	}

	step(t, "helm install")
	node.Helm(t, "install", "imds-guard", chart(t), "--create-namespace")
	node.WaitAgent(t)
	node.waitProtected(t, node.WaitAgent(t).CreationTimestamp.Time)
	asker.silent(t)
	quiet := asker.Answers()

	step(t, "helm upgrade, with another verdict and another interface")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "agent.verdict=reject",
		"--set", "agent.interface={eni+,vlan+}")
	node.waitAgent(t, "the agent with the new flags", hasArgs("--interface=eni+,vlan+", "--verdict=reject"))
	for i, want := range []string{"-i eni+ -p tcp", "-i eni+", "-i vlan+ -p tcp", "-i vlan+"} {
		want = "-A FORWARD -d " + imdsIP + "/32 " + want + " -j REJECT"
		if rule := node.Exec(t, "iptables-nft", "-S", "FORWARD", fmt.Sprint(i+1)); !strings.HasPrefix(rule, want) {
			t.Errorf("rule %d is %s, not %s", i+1, rule, want)
		}
	}
	asker.WaitAttempts(t, 20)

	step(t, "helm rollback")
	node.Helm(t, "rollback", "imds-guard", "1")
	node.waitAgent(t, "the agent with the old flags", hasArgs("--interface=eni+"))
	asker.WaitAttempts(t, 20)
	if rule := node.Exec(t, "iptables-nft", "-S", "FORWARD", "1"); !strings.Contains(rule, "-i eni+ -j DROP") {
		t.Errorf("the first rule is %s", rule)
	}

	step(t, "helm uninstall, without cleanup")
	node.Helm(t, "uninstall", "imds-guard")
	node.waitAgentGone(t)
	asker.WaitAttempts(t, 20)
	if answers := asker.Answers() - quiet; answers != 0 {
		t.Errorf("%d answers after the install, up to the uninstall and after it", answers)
	}
}

// The cleanup that was asked for comes with the uninstall, and takes every rule, also those of earlier flags.
func TestHelmCleanupOnUninstall(t *testing.T) {
	begin(t)
	asker := node.installForCleanup(t)
	step(t, "helm uninstall, with cleanup.onUninstall")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "cleanup.onUninstall=true")
	node.waitAgent(t, "the agent after the upgrade", hasArgs("--interface=eni+"))
	node.Helm(t, "uninstall", "imds-guard")
	node.waitCleanup(t)
	node.noRules(t)
	asker.WaitAnswers(t, 5)
	node.Kubectl(t, "-n", namespace, "delete", "daemonset", "imds-guard-cleanup")
}

// The cleanup is run in the place of the agent, and then everything is uninstalled.
func TestHelmCleanupRun(t *testing.T) {
	begin(t)
	asker := node.installForCleanup(t)
	step(t, "helm upgrade, with cleanup.run")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "cleanup.run=true")
	node.waitCleanup(t)
	node.noRules(t)
	asker.WaitAnswers(t, 5)

	step(t, "helm uninstall")
	node.Helm(t, "uninstall", "imds-guard")
	wait(t, "nothing to be left", func() error {
		left, err := node.Try("kubectl", "get", "-A", "-l", "app.kubernetes.io/name in (imds-guard,imds-guard-cleanup)",
			"-o", "name", "daemonsets,pods,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,"+
				"validatingadmissionpolicies,validatingadmissionpolicybindings")
		if err == nil && left != "" {
			err = fmt.Errorf("there is %s", left)
		}
		return err
	})
}

// installForCleanup installs with one set of flags and upgrades to another, so that rules of both are there.
func (n *Node) installForCleanup(t *testing.T) *Asker {
	t.Helper()
	asker := n.RunAsker(t, "asker", false)
	n.Helm(t, "install", "imds-guard", chart(t), "--create-namespace", "--set", "agent.verdict=reject",
		"--set", "agent.interface={eni+,vlan+}")
	n.waitAgent(t, "the agent with the first flags", hasArgs("--interface=eni+,vlan+", "--verdict=reject"))
	n.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-values")
	n.waitAgent(t, "the agent with the other flags", hasArgs("--interface=eni+"))
	asker.silent(t)
	if rules := n.Exec(t, "iptables-nft", "-S", "FORWARD"); !strings.Contains(rules, "-i vlan+") {
		t.Errorf("there is no rule of the first flags left to clean up: %s", rules)
	}
	return asker
}

// chart is where helm finds it.
func chart(t *testing.T) string {
	t.Helper()
	directory, err := filepath.Abs("../../deploy/chart/imds-guard")
	if err != nil {
		t.Fatal(err)
	}
	return directory
}

// Helm runs helm with an administrator's rights in our namespace, and says where the image is. Its failure is the test's.
func (n *Node) Helm(t *testing.T, arguments ...string) {
	t.Helper()
	if out, err := n.helm(arguments...); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func (n *Node) helm(arguments ...string) (string, error) {
	binary, err := filepath.Abs("../../bin/helm") // by the Makefile
	if err != nil {
		return "", err
	}
	arguments = append([]string{binary, "--namespace", namespace}, arguments...)
	if slices.Contains(arguments, "install") || slices.Contains(arguments, "upgrade") {
		arguments = append(arguments, "--set", "image.repository="+image)
	}
	return n.Try(arguments...)
}

// hasArgs wants the agent's flags to be these, and the one that the chart always sets.
func hasArgs(arguments ...string) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		want := slices.Concat([]string{"run"}, arguments, []string{"--probe-interval=5m", "--health-bind-address=127.0.0.1:9168"})
		if have := pod.Spec.Containers[0].Args; !slices.Equal(have, want) {
			return fmt.Errorf("its arguments are %q", have)
		}
		return nil
	}
}

// waitAgentGone waits until the agent's pod has ended.
func (n *Node) waitAgentGone(t *testing.T) {
	t.Helper()
	wait(t, "the agent to be gone", func() error {
		pods, err := n.Client.CoreV1().Pods(namespace).List(t.Context(),
			metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=imds-guard"})
		if err == nil && len(pods.Items) > 0 {
			err = fmt.Errorf("%s is %s", pods.Items[0].Name, pods.Items[0].Status.Phase)
		}
		return err
	})
}

// waitCleanup waits until the cleanup has succeeded on the node, which is when its pod is ready.
func (n *Node) waitCleanup(t *testing.T) {
	t.Helper()
	wait(t, "the cleanup", func() error {
		d, err := n.Client.AppsV1().DaemonSets(namespace).Get(t.Context(), "imds-guard-cleanup", metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return fmt.Errorf("there is no cleanup yet")
		}
		if err == nil && (d.Status.DesiredNumberScheduled == 0 || d.Status.NumberReady < d.Status.DesiredNumberScheduled) {
			err = fmt.Errorf("it is done on %d nodes of %d", d.Status.NumberReady, d.Status.DesiredNumberScheduled)
		}
		return err
	})
}

// noRules fails the test if a rule, a route, a link or a program about the metadata service is left.
func (n *Node) noRules(t *testing.T) {
	t.Helper()
	n.Exec(t, "test", "!", "-e", "/sys/fs/bpf/imds-guard")
	for _, family := range []string{"iptables-nft", "ip6tables-nft"} {
		rules := n.Exec(t, family, "-S", "FORWARD")
		if strings.Contains(rules, imdsIP) || strings.Contains(rules, "fd00:ec2::254") {
			t.Errorf("%s has rules left:\n%s", family, rules)
		}
	}
	for _, list := range []string{"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "link"} {
		out := n.Exec(t, append([]string{"ip"}, strings.Fields(list)...)...)
		if strings.Contains(out, "169254") || strings.Contains(out, "imds-guard") {
			t.Errorf("ip %s has something left:\n%s", list, out)
		}
	}
}

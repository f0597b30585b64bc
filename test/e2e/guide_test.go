//go:build e2e

// What docs/install.md tells an administrator to do and to see, from nothing to protected and back.

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// The plain manifest is applied, the node says that it is protected, a rule is broken, and the administrator is told. Then
// everything is taken away again, in the order of the document.
func TestInstallGuide(t *testing.T) {
	begin(t)
	asker := node.RunAsker(t, "asker", false)

	step(t, "install")
	node.Install(t, standard)
	node.Kubectl(t, "-n", namespace, "rollout", "status", "daemonset/imds-guard", "--timeout=3m")
	node.Kubectl(t, "wait", "--for=condition="+condition, "node", "--all", "--timeout=3m")

	step(t, "see it work")
	columns := node.Kubectl(t, "get", "nodes", "--no-headers", "-o", `custom-columns=NODE:.metadata.name,`+
		`PROTECTED:.status.conditions[?(@.type=="IMDSProtected")].status,`+
		`WHY:.status.conditions[?(@.type=="IMDSProtected")].reason,`+
		`SEEN:.status.conditions[?(@.type=="IMDSProtected")].lastHeartbeatTime,TAINTS:.spec.taints[*].key`)
	said := strings.Fields(columns)
	if len(said) != 5 || said[1] != "True" || said[2] != "RulesVerified" || said[4] != "<none>" {
		t.Errorf("the node says %s", columns)
	}
	check := []string{"-n", namespace, "exec", "daemonset/imds-guard", "--", "imds-guard", "check", "--interface=eni+"}
	if out := node.Kubectl(t, check...); !strings.Contains(out, "protected      true") {
		t.Errorf("check says %s", out)
	}
	asker.silent(t)

	step(t, "break a rule, and be told")
	before, _, err := node.told(t, "IMDSRulesRepaired")
	if err != nil {
		t.Fatal(err)
	}
	node.Kubectl(t, "-n", namespace, "exec", "daemonset/imds-guard", "--",
		"iptables-nft", "-D", "FORWARD", "-i", "eni+", "-d", imdsIP+"/32", "-j", "DROP")
	wait(t, "check to be content again", func() error {
		_, err := node.Try(append([]string{"kubectl"}, check...)...)
		return err
	})
	const event = "iptables ipv4 rules were missing and have been repaired"
	wait(t, "the event", func() error {
		times, messages, err := node.told(t, "IMDSRulesRepaired")
		if err != nil {
			return err
		}
		for uid, n := range times {
			if n > before[uid] && strings.Contains(messages[uid], event) {
				return nil
			}
		}
		return fmt.Errorf("there is none that says %q, but %v", event, messages)
	})
	if events := node.Kubectl(t, "describe", "node", node.Name); !strings.Contains(events, event) {
		t.Errorf("kubectl describe node doesn't show the event: %s", events)
	}
	if drifts := node.Metric(t, "imds_guard_drift_total", "layer=iptables", "family=ipv4", "reason=missing"); drifts != 1 {
		t.Errorf("imds_guard_drift_total is %v after one deleted rule", drifts)
	}

	step(t, "uninstall")
	file := func(name string) string {
		path, err := filepath.Abs("../../deploy/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	node.Kubectl(t, "-n", namespace, "delete", "daemonset", "imds-guard", "--cascade=foreground", "--timeout=3m")
	if c, err := node.Condition(t); err != nil || c.Status != corev1.ConditionUnknown || c.Reason != "AgentStopped" {
		t.Errorf("after the agent has been stopped the condition is %+v: %v", c, err)
	}
	asker.silent(t)
	node.Kubectl(t, "apply", "-f", file("cleanup.yaml"))
	node.Kubectl(t, "-n", namespace, "rollout", "status", "daemonset/imds-guard-cleanup", "--timeout=3m")
	node.noRules(t)
	asker.WaitAnswers(t, 5)
	node.Kubectl(t, "delete", "--ignore-not-found", "-f", file("cleanup.yaml"), "-f", file("daemonset.yaml"), "--timeout=3m")
	left := node.Kubectl(t, "get", "namespaces,clusterroles,validatingadmissionpolicies", "-o", "name")
	if strings.Contains(left, "imds-guard") {
		t.Errorf("something is left: %s", left)
	}
}

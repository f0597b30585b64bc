//go:build e2e

// Scenario 15: who asks, from audit mode to enforcing.

package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/imds-guard/imds-guard/pkg/report"
)

// deployment is one of pods that ask.
const deployment = `{apiVersion: apps/v1, kind: Deployment, metadata: {name: web, namespace: default}, spec: {replicas: 2,
  selector: {matchLabels: {app: web}}, template: {metadata: {labels: {app: web}}, spec: {terminationGracePeriodSeconds: 0,
  containers: [{name: main, image: "` + toolImage + `", imagePullPolicy: Never, args: [ask, -every, 1s]}]}}}}`

// In audit mode pods are served, and the report of all nodes names those that would miss it, with what they ask for. Enforced, they are
// refused, and a pod's own events say why. What was counted outlives the agents.
func TestWhoAsks(t *testing.T) {
	begin(t)
	asker := node.RunAsker(t, "asker", false)
	node.create(t, deployment)
	t.Cleanup(func() { node.Kubectl(t, "delete", "deployment", "web", "--wait=true", "--cascade=foreground") })

	step(t, "audit")
	node.Helm(t, "install", "imds-guard", chart(t), "--create-namespace", "--set", "agent.mode=audit")
	node.waitAgent(t, "the agent that audits", hasArgs("--interface=eni+", "--mode=audit"))
	asker.WaitAnswers(t, 5)
	audited := node.waitReport(t, func(all []report.Workload) error {
		for kind, name := range map[string]string{"Pod": "asker", "Deployment": "web"} {
			w, err := workload(all, kind, name)
			if err != nil {
				return err
			}
			if w.Audited == 0 || w.Blocked > 0 || !strings.Contains(fmt.Sprint(w.Requests), "credentials Go-http-client/1.1") {
				return fmt.Errorf("%s has %+v", name, w)
			}
		}
		return nil
	})
	web, _ := workload(audited, "Deployment", "web")
	if web.Pods != 2 || web.Namespace != "default" {
		t.Errorf("the Deployment has %+v", web)
	}
	if c, err := node.Condition(t); err != nil || c.Status != "False" || c.Reason != "Auditing" {
		t.Errorf("the condition is %+v, %v", c, err)
	}
	node.waitTold(t, asker, "IMDSAccessAudited")
	if out, err := node.plugin("status"); err != nil || !strings.Contains(out, "audit") {
		t.Errorf("status: %v: %s", err, out)
	}

	step(t, "enforce")
	node.Helm(t, "upgrade", "imds-guard", chart(t), "--reset-then-reuse-values", "--set", "agent.mode=enforce")
	node.waitAgent(t, "the agent that enforces", hasArgs("--interface=eni+"))
	node.waitAllLayers(t)
	quiet := asker.Answers()
	asker.waitRefused(t, "when it is enforced")
	node.waitReport(t, func(all []report.Workload) error {
		w, err := workload(all, "Pod", "asker")
		before, _ := workload(audited, "Pod", "asker")
		if err == nil && (w.Blocked == 0 || w.Audited < before.Audited || !w.First.Equal(before.First)) {
			err = fmt.Errorf("it has %+v, and before %+v", w, before)
		}
		return err
	})
	node.waitTold(t, asker, "IMDSAccessBlocked")
	if out := node.Kubectl(t, "describe", "pod", "asker"); !strings.Contains(out, "IMDSAccessBlocked") {
		t.Errorf("kubectl describe says nothing of it:\n%s", out)
	}
	if answers := asker.Answers() - quiet; answers != 0 {
		t.Errorf("the pod got %d answers", answers)
	}
	if attempts := node.Metric(t, "imds_guard_attempts_total", "namespace=default", "workload=asker", "pod=asker", "verdict=blocked"); attempts == 0 {
		t.Error("its series has none")
	}
	if out, err := node.plugin("status"); err != nil || !strings.Contains(out, "1 of 1 node protected.") {
		t.Errorf("status: %v: %s", err, out)
	}
}

func workload(all []report.Workload, kind, name string) (report.Workload, error) {
	for _, w := range all {
		if w.Kind == kind && w.Name == name {
			return w, nil
		}
	}
	return report.Workload{}, fmt.Errorf("%s %s is not among %+v", kind, name, all)
}

// waitReport asks by the plugin until the report is as wanted.
func (n *Node) waitReport(t *testing.T, wanted func([]report.Workload) error) (all []report.Workload) {
	t.Helper()
	wait(t, "the report", func() error {
		text, err := n.plugin("report", "-o", "json")
		if err != nil {
			return err
		}
		var document struct{ Workloads []report.Workload }
		if err := json.Unmarshal([]byte(text), &document); err != nil {
			return fmt.Errorf("%w: %s", err, text)
		}
		all = document.Workloads
		return wanted(all)
	})
	return all
}

// plugin runs the kubectl plugin with an administrator's rights.
func (n *Node) plugin(arguments ...string) (string, error) {
	binary, err := filepath.Abs("../../bin/kubectl-imds_guard") // by the Makefile
	if err != nil {
		return "", err
	}
	return n.Try(append([]string{binary}, arguments...)...)
}

// waitTold waits for an event about a pod.
func (n *Node) waitTold(t *testing.T, a *Asker, reason string) {
	t.Helper()
	wait(t, "the event "+reason, func() error {
		events, err := n.Client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{FieldSelector: "reason=" + reason})
		if err != nil {
			return err
		}
		for _, e := range events.Items {
			if e.InvolvedObject.UID == a.uid {
				return nil
			}
		}
		return fmt.Errorf("of %d events none is about pod %s", len(events.Items), a.uid)
	})
}

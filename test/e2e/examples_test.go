//go:build e2e

// Scenario 16: the policies of docs/examples, which keep pods out of the node's network, and off nodes that are not protected yet.

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Pods are refused for what the policies name and for nothing else, and only outside of the namespaces that a node needs.
func TestExamplePolicies(t *testing.T) {
	begin(t)
	pod := func(namespace, spec string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: e2e, namespace: %s}, spec: {containers: [{name: a, image: a}], %s}}`, namespace, spec)
	}
	tolerating := func(toleration string) string {
		return fmt.Sprintf(`tolerations: [{key: other, operator: Exists}, {%s}]`, toleration)
	}
	const (
		hostNetwork = "imds-guard-host-network"
		startup     = "imds-guard-startup-taint"
		everything  = `operator: Exists`
	)
	refused := map[string]map[string]string{
		hostNetwork: {
			"in the node's network": pod("default", "hostNetwork: true"),
		},
		startup: {
			"everything":              pod("default", tolerating(everything)),
			"everything NoExecute":    pod("default", tolerating(`operator: Exists, effect: NoExecute`)),
			"the taint":               pod("default", tolerating(`key: `+taint+`, operator: Exists`)),
			"the taint with a value":  pod("default", tolerating(`key: `+taint+`, value: "true"`)),
			"the taint with its kind": pod("default", tolerating(`key: `+taint+`, operator: Exists, effect: NoExecute`)),
		},
	}
	allowed := map[string]string{
		"a plain pod":                         pod("default", "hostNetwork: false"),
		"another taint tolerated":             pod("default", tolerating(`key: dedicated, operator: Exists, effect: NoExecute`)),
		"every taint that only holds back":    pod("default", tolerating(`operator: Exists, effect: NoSchedule`)),
		"the node's network, in kube-system":  pod("kube-system", "hostNetwork: true"),
		"everything, in kube-system":          pod("kube-system", tolerating(everything)),
		"the agent's own, in its namespace":   pod(namespace, "hostNetwork: true, "+tolerating(everything)),
		"the taint, in the agent's namespace": pod(namespace, tolerating(`key: `+taint+`, operator: Exists`)),
	}
	node.Kubectl(t, "create", "namespace", namespace)
	wait(t, "a service account in the agent's namespace", func() error {
		_, err := node.Try("kubectl", "-n", namespace, "get", "serviceaccount", "default")
		return err
	})
	for _, pods := range refused {
		for what, manifest := range pods {
			if err := node.dryRun(manifest); err != nil {
				t.Fatalf("without the policies %s is refused: %v", what, err)
			}
		}
	}
	// One that is there before the policies, and that no node takes.
	node.Apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: older}, spec: {nodeSelector: {e2e: none}, containers: [{name: a, image: a}],
		tolerations: [{`+everything+`}]}}`)
	node.Apply(t, `{apiVersion: v1, kind: Pod, metadata: {name: waiting}, spec: {nodeSelector: {e2e: none}, containers: [{name: a, image: a}],
		tolerations: [{key: other, operator: Exists}]}}`)

	for _, name := range []string{"host-network", "startup-taint"} {
		manifest, err := os.ReadFile("../../docs/examples/policy-" + name + ".yaml")
		if err != nil {
			t.Fatal(err)
		}
		node.Apply(t, string(manifest))
	}
	byPolicy := func(policy string, err error) error {
		if err == nil || !strings.Contains(err.Error(), "ValidatingAdmissionPolicy '"+policy+"'") {
			return fmt.Errorf("not refused by %s: %v", policy, err)
		}
		return nil
	}
	for policy, pods := range refused {
		for what, manifest := range pods {
			wait(t, "the policy "+policy+" to refuse "+what, func() error { return byPolicy(policy, node.dryRun(manifest)) })
		}
	}
	for what, manifest := range allowed {
		if err := node.dryRun(manifest); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}

	step(t, "pods that were there before")
	tolerate := `[{"op": "add", "path": "/spec/tolerations/-", "value": {"key": "` + taint + `", "operator": "Exists"}}]`
	for _, name := range []string{"older", "waiting"} {
		_, err := node.Try("kubectl", "patch", "pod", name, "--dry-run=server", "--type=json", "-p", tolerate)
		if err := byPolicy(startup, err); err != nil {
			t.Errorf("a toleration given to the pod %s: %v", name, err)
		}
		node.Kubectl(t, "label", "pod", name, "e2e=labelled")
	}
}

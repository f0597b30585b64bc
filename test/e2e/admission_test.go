//go:build e2e

// Scenario 7: what somebody could do who has taken the agent's token from its pod.

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// The agent's own token can do what the agent does, and nothing else: not to another node, another taint, another condition,
// or anything else of its own node, by either way to it.
func TestAdmissionPolicy(t *testing.T) {
	begin(t)
	const other = "another-node"
	node.Apply(t, `{apiVersion: v1, kind: Node, metadata: {name: `+other+`}, spec: {taints: [
		{key: `+taint+`, effect: NoExecute}]}}`)
	t.Cleanup(func() { node.Kubectl(t, "delete", "node", other, "--ignore-not-found") })
	node.Install(t, standard)
	node.waitProtected(t, node.WaitAgent(t).CreationTimestamp.Time)

	agent := node.AgentPID(t)
	token, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/run/secrets/kubernetes.io/serviceaccount/token", agent))
	if err != nil {
		t.Fatal(err)
	}
	thief := node.clientWith(t, string(token))
	unbound, err := node.Client.CoreV1().ServiceAccounts(namespace).CreateToken(t.Context(), "imds-guard",
		&authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	stranger := node.clientWith(t, unbound.Status.Token)

	patch := func(client kubernetes.Interface, kind types.PatchType, name, body string, sub ...string) error {
		_, err := client.CoreV1().Nodes().Patch(t.Context(), name, kind, []byte(body), metav1.PatchOptions{}, sub...)
		return err
	}
	const (
		merge     = types.MergePatchType
		strategic = types.StrategicMergePatchType
		jsonPatch = types.JSONPatchType

		label      = `{"metadata": {"labels": {"thief": "1"}}}`
		annotation = `{"metadata": {"annotations": {"thief": "1"}}}`
		reason     = "IMDSAccessBlocked"
		protected  = `{"status": {"conditions": [{"type": "IMDSProtected", "status": "True", "reason": "Thief"}]}}`
	)
	// What should not have been possible must not be in the way of the next test.
	t.Cleanup(func() {
		node.Kubectl(t, "patch", "node", node.Name, "--type=merge", "-p", `{"spec": {"unschedulable": null, "taints": null},
			"metadata": {"finalizers": null, "labels": {"thief": null}, "annotations": {"thief": null}}}`)
	})
	step(t, "what must be refused")
	refused := map[string]error{
		"another node: our taint":     patch(thief, merge, other, `{"spec": {"taints": null}}`),
		"another node: our condition": patch(thief, strategic, other, protected, "status"),
		"a taint added": patch(thief, strategic, node.Name,
			`{"spec": {"taints": [{"key": "other", "effect": "NoExecute"}]}}`),
		"our taint added": patch(thief, strategic, node.Name,
			`{"spec": {"taints": [{"key": "`+taint+`", "effect": "NoExecute"}]}}`),
		"unschedulable":                patch(thief, merge, node.Name, `{"spec": {"unschedulable": true}}`),
		"a label":                      patch(thief, merge, node.Name, label),
		"a label, by the status":       patch(thief, merge, node.Name, label, "status"),
		"an annotation":                patch(thief, merge, node.Name, annotation),
		"an annotation, by the status": patch(thief, merge, node.Name, annotation, "status"),
		"a finalizer":                  patch(thief, merge, node.Name, `{"metadata": {"finalizers": ["e2e/thief"]}}`),
		"another condition": patch(thief, strategic, node.Name,
			`{"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Thief"}]}}`, "status"),
		"a new condition": patch(thief, strategic, node.Name,
			`{"status": {"conditions": [{"type": "Thief", "status": "True"}]}}`, "status"),
		"all conditions": patch(thief, merge, node.Name, `{"status": {"conditions": []}}`, "status"),
		"capacity":       patch(thief, merge, node.Name, `{"status": {"capacity": {"thief": "1"}}}`, "status"),
		"an address":     patch(thief, merge, node.Name, `{"status": {"addresses": []}}`, "status"),
		"our taint and, with it, a label": patch(thief, merge, node.Name,
			`{"metadata": {"labels": {"thief": "1"}}, "spec": {"taints": null}}`),
		"the node deleted": thief.CoreV1().Nodes().Delete(t.Context(), node.Name, metav1.DeleteOptions{}),
		"another node's name in an event about a pod": podEvent(t, thief, reason, "default", other),
		"an event about a pod, for another reason":    podEvent(t, thief, "BackOff", "default", node.Name),
		"without a node of its own: a pod's event":    podEvent(t, stranger, reason, "default", node.Name),
		"an event about another node":                 event(t, thief, other, "imds-guard"),
		"an event in another's name":                  event(t, thief, node.Name, "kubelet"),
		"without a node of its own: our condition":    patch(stranger, strategic, node.Name, protected, "status"),
		"without a node of its own: an event":         event(t, stranger, node.Name, "imds-guard"),
	}
	for what, err := range refused {
		if !denied(err) {
			t.Errorf("%s: not denied: %v", what, err)
		}
	}
	if object, err := node.Client.CoreV1().Nodes().Get(t.Context(), other, metav1.GetOptions{}); err != nil {
		t.Error(err)
	} else if len(object.Spec.Taints) == 0 || object.Spec.Taints[0].Key != taint || len(object.Status.Conditions) != 0 {
		t.Errorf("the other node was changed: %+v %+v", object.Spec, object.Status.Conditions)
	}

	step(t, "another taint beside our own")
	node.Kubectl(t, "taint", "node", node.Name, "e2e/other=:PreferNoSchedule")
	if err := patch(thief, merge, node.Name, `{"spec": {"taints": null}}`); !denied(err) {
		t.Errorf("another taint removed: not denied: %v", err)
	}
	if err := patch(thief, jsonPatch, node.Name,
		`[{"op": "replace", "path": "/spec/taints/0/effect", "value": "NoExecute"}]`); !denied(err) {
		t.Errorf("another taint changed: not denied: %v", err)
	}

	step(t, "what must be allowed")
	allowed := map[string]error{
		"reading its node":  gets(thief, t),
		"its own condition": patch(thief, strategic, node.Name, protected, "status"),
		"an event":          event(t, thief, node.Name, "imds-guard"),
		"a pod's event":     podEvent(t, thief, reason, "default", node.Name),
		"listing pods":      lists(thief, t),
	}
	for what, err := range allowed {
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	node.Kubectl(t, "taint", "node", node.Name, taint+"=true:NoSchedule")
	if err := patch(thief, merge, node.Name,
		`{"spec": {"taints": [{"key": "e2e/other", "effect": "PreferNoSchedule"}]}}`); err != nil {
		t.Errorf("its own taint removed: %v", err)
	}
	if has, err := node.HasTaint(t); err != nil || has {
		t.Errorf("its own taint is still there: %v", err)
	}
	taints := node.Kubectl(t, "get", "node", node.Name, "-o", "jsonpath={.spec.taints[*].key}")
	if !strings.Contains(taints, "e2e/other") {
		t.Errorf("the other taint has gone too: %s", taints)
	}
}

// denied reports whether RBAC or the admission policy refused, and not something else.
func denied(err error) bool {
	return apierrors.IsForbidden(err) ||
		apierrors.IsInvalid(err) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'imds-guard")
}

func gets(client kubernetes.Interface, t *testing.T) error {
	_, err := client.CoreV1().Nodes().Get(t.Context(), node.Name, metav1.GetOptions{})
	return err
}

func lists(client kubernetes.Interface, t *testing.T) error {
	_, err := client.CoreV1().Pods("").List(t.Context(), metav1.ListOptions{})
	return err
}

func event(t *testing.T, client kubernetes.Interface, about, by string) error {
	_, err := client.CoreV1().Events("default").Create(t.Context(), &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "e2e-", Namespace: "default"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: about, UID: types.UID(about)},
		Reason:         "E2E", Message: "e2e", Type: corev1.EventTypeWarning,
		Source: corev1.EventSource{Component: by}, ReportingController: by, ReportingInstance: node.Name,
	}, metav1.CreateOptions{})
	return err
}

// podEvent records in the namespace default what is said of a pod of some namespace, as seen from some node.
func podEvent(t *testing.T, client kubernetes.Interface, reason, namespace, from string) error {
	_, err := client.CoreV1().Events("default").Create(t.Context(), &corev1.Event{
		ObjectMeta:     metav1.ObjectMeta{GenerateName: "e2e-", Namespace: "default"},
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: "shop", UID: "shop"},
		Reason:         reason, Message: "e2e", Type: corev1.EventTypeWarning,
		Source: corev1.EventSource{Component: "imds-guard", Host: from}, ReportingController: "imds-guard", ReportingInstance: from,
	}, metav1.CreateOptions{})
	return err
}

// clientWith returns a client that has only this token.
func (n *Node) clientWith(t *testing.T, token string) kubernetes.Interface {
	t.Helper()
	admin, err := clientcmd.BuildConfigFromFlags("", filepath.Join(n.State, "pki/admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(admin)
	config.BearerToken, config.Dial, config.QPS = token, n.dial, -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

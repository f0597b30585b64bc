// The start-up taint, which keeps pods off a new node until its rules are in place. The node group adds it; the agent only
// removes it.

package node

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
)

// TaintKey is the key of the start-up taint, whatever its value and effect.
const TaintKey = "imds-guard.io/agent-not-ready"

func ours(t corev1.Taint) bool { return t.Key == TaintKey }

func tainted(n *corev1.Node) bool { return slices.ContainsFunc(n.Spec.Taints, ours) }

// operation is one operation of a JSON patch (RFC 6902).
type operation struct {
	Op    string         `json:"op"`
	Path  string         `json:"path"`
	Value []corev1.Taint `json:"value,omitempty"`
}

// untaint removes the taint if pods may start on the node. If the taints are changed meanwhile, it starts over: a few times,
// but only once while requests are failing.
func (r *Reporter) untaint(ctx context.Context, known Knowledge) error {
	attempts := maxAttempts
	if r.failures > 0 {
		attempts = 1
	}
	for known.Admit && tainted(r.node) {
		if attempts == 0 {
			return fmt.Errorf("removing the taint %s from the node: something puts it back at once", TaintKey)
		}
		attempts--
		if err := r.removeTaint(ctx); err != nil && (!conflict(err) || attempts == 0) {
			return err
		}
		if r.node == nil {
			if err := r.read(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// conflict reports whether the Node was changed meanwhile. The API server reports a failed test in a JSON patch as Invalid
// (apiserver/pkg/endpoints/handlers/patch.go).
func conflict(err error) bool { return apierrors.IsConflict(err) || apierrors.IsInvalid(err) }

// removeTaint removes the taint if the list of taints is still the one last seen: a controller that changes another taint at
// the same time must not lose its change. If anything fails, the Node is read again before the next attempt.
func (r *Reporter) removeTaint(ctx context.Context) error {
	const path = "/spec/taints"
	before := r.node.Spec.Taints
	patch := []operation{{"test", path, before}, {Op: "remove", Path: path}}
	if rest := slices.DeleteFunc(slices.Clone(before), ours); len(rest) > 0 {
		patch[1] = operation{"replace", path, rest}
	}
	r.node = nil
	text, err := json.Marshal(patch)
	if err != nil {
		return fmt.Errorf("writing the patch of the node's taints: %w", err)
	}
	node, err := r.client.Patch(ctx, types.JSONPatchType, text)
	if err != nil {
		return fmt.Errorf("removing the taint %s from the node: %w", TaintKey, err)
	}
	r.node = node
	r.log.Info("start-up taint removed: the rules are in place", "taint", TaintKey)
	return nil
}

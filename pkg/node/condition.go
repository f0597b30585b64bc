// The node's condition: what it says, and why.

package node

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// ConditionType is the type of the node condition.
const ConditionType corev1.NodeConditionType = "IMDSProtected"

// The condition's reasons, each of which belongs to one status.
const (
	// True.
	ReasonVerified  = "RulesVerified"
	ReasonDegraded  = "LayerNotInForce"
	ReasonNotProbed = "NotProbed"
	// False.
	ReasonNotInForce = "RulesNotInForce"
	ReasonNotCovered = "InterfaceNotCovered"
	ReasonAnswered   = "ProbeAnswered"
	ReasonAuditing   = "Auditing"
	// Unknown.
	ReasonUnreadable  = "RulesUnreadable"
	ReasonNotVerified = "NotVerified"
	ReasonStopped     = "AgentStopped"
)

// Condition is the condition to set on the node.
type Condition struct {
	Status  corev1.ConditionStatus
	Reason  string
	Message string
}

// stopped is the condition that an agent leaves behind: once nobody looks any more, nobody knows.
var stopped = Condition{corev1.ConditionUnknown, ReasonStopped,
	"The agent was stopped. Its rules stay in place, but nothing watches them until it is back."}

// Coverage is what is known about the pod-side interfaces.
type Coverage struct {
	// Err says why they could not be listed.
	Err error
	// Uncovered has the names of those that no rule covers.
	Uncovered []string
}

// Judge judges a node as `imds-guard check` would: True only if every path from pods to the endpoint was read back from the
// kernel as closed by some layer, and every pod-side interface is covered.
func Judge(s guard.Status, c Coverage) Condition {
	var read, wrong, unknown []string
	for _, l := range s.Layers {
		switch {
		case l.State == layer.Unknown:
			unknown = append(unknown, l.String())
		case l.State == layer.Unsupported && (l.NoPath || !s.Open), l.State == layer.Auditing:
		case !l.State.Protects():
			wrong = append(wrong, l.String())
		default:
			read = append(read, l.ID.String())
		}
	}
	switch {
	case s.Auditing:
		return Condition{corev1.ConditionFalse, ReasonAuditing,
			"Pods may reach the instance metadata service: " + strings.Join(append(s.Reasons(), append(wrong, unknown...)...), "; ")}
	case s.Protected:
	case s.Answered != "":
		return Condition{corev1.ConditionFalse, ReasonAnswered,
			"Pods may reach the instance metadata service: " + strings.Join(append(s.Reasons(), append(wrong, unknown...)...), "; ")}
	case s.Open:
		return Condition{corev1.ConditionFalse, ReasonNotInForce,
			"Pods may reach the instance metadata service: " + strings.Join(append(append(wrong, unknown...), s.Reasons()...), "; ")}
	case s.Forward && s.Unsearched != nil:
		return Condition{corev1.ConditionUnknown, ReasonNotVerified,
			"Forwarded packets are stopped, but " + strings.Join(append(s.Reasons(), append(wrong, unknown...)...), "; ")}
	case stale(s):
		return Condition{corev1.ConditionUnknown, ReasonNotVerified, "The state is not known: " + strings.Join(unknown, "; ")}
	case len(unknown) > 0:
		return Condition{corev1.ConditionUnknown, ReasonUnreadable,
			"It is not known whether pods can reach the instance metadata service: " + strings.Join(unknown, "; ")}
	default:
		return Condition{corev1.ConditionUnknown, ReasonUnreadable, "No address family is supported on this node."}
	}
	switch {
	case c.Err != nil && !s.AnyInterface:
		return Condition{corev1.ConditionUnknown, ReasonNotVerified,
			"The rules are in place, but it is not known whether they cover every pod: " + c.Err.Error()}
	case len(c.Uncovered) > 0 && !s.AnyInterface:
		return Condition{corev1.ConditionFalse, ReasonNotCovered,
			"Pods behind these interfaces can reach the instance metadata service, because no --interface covers them: " +
				first(c.Uncovered)}
	}
	if s.Degraded {
		reason := ReasonDegraded
		if len(wrong)+len(unknown) == 0 && s.NotProbed != nil {
			reason = ReasonNotProbed
		}
		return Condition{corev1.ConditionTrue, reason,
			"Pods are kept from the instance metadata service by " + strings.Join(read, " and ") + "; but " +
				strings.Join(append(append(wrong, unknown...), s.Reasons()...), "; ")}
	}
	message := "Pods are kept from the instance metadata service: the rules for " + strings.Join(read, " and ") +
		" were read back from the kernel."
	for _, reason := range s.Reasons() {
		message += " But " + reason + "."
	}
	return Condition{corev1.ConditionTrue, ReasonVerified, message}
}

// stale reports whether a state is unknown because nobody has looked, or not recently; if a reading failed, it has an error.
func stale(s guard.Status) bool {
	for _, l := range s.Layers {
		if l.State == layer.Unknown && l.Err == nil {
			return true
		}
	}
	return false
}

// first lists only the first few names: a condition's message is for people.
func first(names []string) string {
	const most = 5
	if more := len(names) - most; more > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), more)
	}
	return strings.Join(names, ", ")
}

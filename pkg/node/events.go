// Events on the Node. The recorder of client-go counts repetitions in one event, sums up similar ones, and lets no more
// through than a few at once and then one in five minutes, so that a fight over the rules floods nobody.

package node

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"

	"github.com/imds-guard/imds-guard/pkg/layer"
)

// The reasons of the events.
const (
	EventRepaired   = "IMDSRulesRepaired"
	EventContended  = "IMDSRulesContended"
	EventNotCovered = "IMDSInterfaceNotCovered"
	// On pods:
	EventBlocked = "IMDSAccessBlocked"
	EventAudited = "IMDSAccessAudited"
)

// Events of one reason go out at once up to eventBurst, then at this rate a second. Each reason has its own share: a wrong
// --interface must not hide a fight. And so has each pod.
const (
	eventBurst = 5
	eventRate  = 1. / 300
)

const component = "imds-guard"

// Events records what happened. Its methods never block. What finds no API server is tried again for two minutes; what is
// refused is lost.
type Events struct {
	recorder record.EventRecorder
	node     *corev1.ObjectReference
}

// newEvents sends events about the named node until ctx ends.
func newEvents(ctx context.Context, sink record.EventSink, name string) *Events {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx), record.WithCorrelatorOptions(record.CorrelatorOptions{
		BurstSize: eventBurst, QPS: eventRate, SpamKeyFunc: share,
	}))
	broadcaster.StartRecordingToSink(sink)
	scheme := runtime.NewScheme() // nothing is looked up in it: the node is given as a reference
	return &Events{
		recorder: broadcaster.NewRecorder(scheme, corev1.EventSource{Component: component, Host: name}),
		// The kubelet gives its own events on a node this UID, and `kubectl describe node` asks for it.
		node: &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)},
	}
}

// Repaired says that a layer's rules had drifted and have been repaired.
func (e *Events) Repaired(id layer.ID, drift layer.State) {
	e.warn(EventRepaired, fmt.Sprintf("%s rules were %s and have been repaired; the agent's log names the suspect", id, drift))
}

// Contended says that a fight over a layer's rules has begun.
func (e *Events) Contended(id layer.ID) {
	e.warn(EventContended, fmt.Sprintf("something keeps undoing the repairs of the %s rules; they continue at a limited rate", id))
}

// NotCovered says that pods behind an interface can reach the endpoint.
func (e *Events) NotCovered(name, fix string) {
	e.warn(EventNotCovered, fmt.Sprintf("no rule covers the pod-side interface %s: its pods can reach the metadata service; %s", name, fix))
}

// Pod is one that an event is about.
type Pod struct{ Namespace, Name, UID string }

// Asked says of a pod that it asks for the endpoint: refused, or only seen to.
func (e *Events) Asked(p Pod, audited bool, advice string) {
	reason, message := EventBlocked, "This pod asks for the node's instance metadata service (IMDS) and is refused. "
	if audited {
		reason, message = EventAudited, "This pod asks for the node's instance metadata service (IMDS) and would be refused in enforce mode. "
	}
	e.recorder.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)},
		corev1.EventTypeWarning, reason, message+advice)
}

// share is what events that share a rate have in common.
func share(e *corev1.Event) string { return e.Reason + " " + string(e.InvolvedObject.UID) }

func (e *Events) warn(reason, message string) {
	e.recorder.Event(e.node, corev1.EventTypeWarning, reason, message)
}

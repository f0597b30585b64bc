// Events on the Node and on pods. client-go's recorder counts repetitions in one event, aggregates similar ones, and limits the
// rate to a few at once and then one in five minutes, so that a fight over the rules floods nobody.

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

// Events with one reason are sent at once up to eventBurst, then at this rate per second. Each reason has its own budget, so
// that a wrong --interface can't hide a fight. The same goes for each pod.
const (
	eventBurst = 5
	eventRate  = 1. / 300
)

const component = "imds-guard"

// Events records what happened. Its methods never block. Events that can't reach the API server are retried for two minutes;
// events that it refuses are lost.
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
		// The kubelet uses this UID in its own events on a node, and `kubectl describe node` looks for it.
		node: &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: name, UID: types.UID(name)},
	}
}

// Repaired reports that a layer's rules had drifted and were repaired.
func (e *Events) Repaired(id layer.ID, drift layer.State) {
	e.warn(EventRepaired, fmt.Sprintf("%s rules were %s and have been repaired; the agent's log names the suspect", id, drift))
}

// Contended reports that a fight over a layer's rules has begun.
func (e *Events) Contended(id layer.ID) {
	e.warn(EventContended, fmt.Sprintf("something keeps undoing the repairs of the %s rules; they continue at a limited rate", id))
}

// NotCovered reports that pods behind an interface can reach the endpoint.
func (e *Events) NotCovered(name, fix string) {
	e.warn(EventNotCovered, fmt.Sprintf("no rule covers the pod-side interface %s: its pods can reach the metadata service; %s", name, fix))
}

// Pod identifies the pod that an event is about.
type Pod struct{ Namespace, Name, UID string }

// Asked reports that a pod asks for the endpoint: it was refused, or only audited.
func (e *Events) Asked(p Pod, audited bool, advice string) {
	reason, message := EventBlocked, "This pod asks for the node's instance metadata service (IMDS) and is refused. "
	if audited {
		reason, message = EventAudited, "This pod asks for the node's instance metadata service (IMDS) and would be refused in enforce mode. "
	}
	e.recorder.Event(&corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID)},
		corev1.EventTypeWarning, reason, message+advice)
}

// share returns the key of the events that share a rate.
func share(e *corev1.Event) string { return e.Reason + " " + string(e.InvolvedObject.UID) }

func (e *Events) warn(reason, message string) {
	e.recorder.Event(e.node, corev1.EventTypeWarning, reason, message)
}

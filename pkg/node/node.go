// Package node reports to the cluster what the guard knows about this node: it removes the start-up taint, keeps a
// condition on the Node up to date, and records events. It only receives information; nothing in it can delay or undo
// enforcement.
//
// It watches nothing. The API server answers each patch with the whole Node, so a taint that has come back is seen at the
// next heartbeat, and a node costs one request in five minutes.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// The condition is confirmed after firstHeartbeat, and then at intervals that double up to lastHeartbeat: whatever adds a
	// new Node's taints a second time (Karpenter's registration may) does so in the first minutes.
	firstHeartbeat = 10 * time.Second
	lastHeartbeat  = 5 * time.Minute
	// lookPeriod is how often to ask what is known, even without a wake: a loop that hangs wakes nobody.
	lookPeriod = 10 * time.Second
	// Changes of the condition are sent at once up to changesBurst, then at this interval: in a fight over the rules it may
	// change many times a second.
	changesEvery = 30 * time.Second
	changesBurst = 5
	// The pause after a failure doubles from minRetry to maxRetry.
	minRetry = time.Second
	maxRetry = time.Minute
	// maxAttempts bounds how often in a row to try to remove the taint, if the taints are changed meanwhile or the taint is put
	// back.
	maxAttempts = 5
	// leaveTimeout bounds the last request: the pod's grace period is short.
	leaveTimeout = 2 * time.Second
)

// Client reads and patches this agent's own Node, and no other. Each call ends within a bounded time.
type Client interface {
	Get(ctx context.Context) (*corev1.Node, error)
	// Patch returns the Node as it is after the patch.
	Patch(ctx context.Context, kind types.PatchType, patch []byte, subresources ...string) (*corev1.Node, error)
}

// Knowledge is what the guard knows at one moment.
type Knowledge struct {
	Condition
	// Admit: pods may start on this node, so the start-up taint can be removed. This is decided separately from whether the
	// node is protected.
	Admit bool
}

// Reporter keeps the Node up to date. Run is for one goroutine, Wake for any.
type Reporter struct {
	client  Client
	known   func() Knowledge
	log     *slog.Logger
	wake    chan struct{}
	changes *rate.Limiter

	node      *corev1.Node // as last returned by the API server; nil if it has to be read first, or again
	sent      Condition
	since     metav1.Time // of sent.Status
	heartbeat time.Time   // when the condition is due even if it has not changed
	interval  time.Duration
	unheard   bool // sending the last condition failed
	failures  int
	notBefore time.Time
}

// New makes a reporter that has done nothing yet. known is called on Run's goroutine and must not block.
func New(client Client, known func() Knowledge, log *slog.Logger) *Reporter {
	return &Reporter{
		client: client, known: known, log: log,
		wake:    make(chan struct{}, 1),
		changes: rate.NewLimiter(rate.Every(changesEvery), changesBurst),
	}
}

// Wake says that something may have changed. It never blocks.
func (r *Reporter) Wake() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Run reports until ctx ends, and then reports, within a few seconds at most, that nobody watches the rules any more.
func (r *Reporter) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			r.leave()
			return
		case <-r.wake:
		case <-timer.C:
		}
		timer.Reset(r.step(ctx))
	}
}

// step does what is due and returns when to do the next step.
func (r *Reporter) step(ctx context.Context) time.Duration {
	if pause := time.Until(r.notBefore); pause > 0 {
		return pause
	}
	next, err := r.sync(ctx)
	switch {
	case ctx.Err() != nil:
		return 0
	case err != nil:
		if r.failures == 0 {
			r.log.Warn("using the Kubernetes API failed; trying again, the rules are not affected", "error", err)
		}
		pause := min(maxRetry, minRetry<<min(r.failures, 10))
		if seconds, asked := apierrors.SuggestsClientDelay(err); asked {
			pause = max(pause, time.Duration(seconds)*time.Second)
		}
		r.failures++
		r.notBefore = time.Now().Add(jitter(pause))
		return time.Until(r.notBefore)
	case r.failures > 0:
		r.log.Info("the Kubernetes API can be used again", "failures", r.failures)
		r.failures = 0
	}
	return next
}

// sync updates the Node to what is known, and returns when to look again. A problem with the taint does not keep the condition
// from being sent.
func (r *Reporter) sync(ctx context.Context) (time.Duration, error) {
	if r.node == nil {
		if err := r.read(ctx); err != nil {
			return 0, err
		}
	}
	known := r.known()
	if err := errors.Join(r.untaint(ctx, known), r.confirm(ctx, known.Condition)); err != nil {
		return 0, err
	}
	if known.Admit && tainted(r.node) {
		return 0, nil // the patch's answer shows that the taint has come back
	}
	return min(lookPeriod, max(0, time.Until(r.heartbeat))), nil
}

// confirm sends the condition if it has changed, or is due.
func (r *Reporter) confirm(ctx context.Context, c Condition) error {
	now := time.Now()
	if due := !now.Before(r.heartbeat); !due {
		changed := c.Status != r.sent.Status || c.Reason != r.sent.Reason
		if !changed || !r.changes.Allow() {
			return nil
		}
	}
	if err := r.send(ctx, c); err != nil {
		return err
	}
	r.interval = min(lastHeartbeat, max(firstHeartbeat, 2*r.interval))
	r.heartbeat = now.Add(jitter(r.interval))
	return nil
}

// read gets the Node, and takes over the condition set by an earlier agent.
func (r *Reporter) read(ctx context.Context) error {
	node, err := r.client.Get(ctx)
	if err != nil {
		return fmt.Errorf("reading the node: %w", err)
	}
	r.node = node
	for _, c := range node.Status.Conditions {
		if c.Type == ConditionType && r.sent == (Condition{}) {
			r.sent.Status, r.since = c.Status, c.LastTransitionTime
		}
	}
	return nil
}

// send writes the condition. A strategic merge patch replaces only the condition of this type, so it can't conflict with the
// kubelet's.
func (r *Reporter) send(ctx context.Context, c Condition) error {
	now := metav1.Now()
	since := r.since
	if c.Status != r.sent.Status || since.IsZero() {
		since = now
	}
	patch, err := json.Marshal(map[string]any{"status": map[string]any{"conditions": []corev1.NodeCondition{{
		Type: ConditionType, Status: c.Status, Reason: c.Reason, Message: c.Message,
		LastHeartbeatTime: now, LastTransitionTime: since,
	}}}})
	if err != nil {
		return fmt.Errorf("writing the node's condition: %w", err)
	}
	node, err := r.client.Patch(ctx, types.StrategicMergePatchType, patch, "status")
	r.unheard = err != nil
	if err != nil {
		r.node = nil // it may be a new Node object by now, tainted again
		return fmt.Errorf("setting the node's condition: %w", err)
	}
	if c.Status != r.sent.Status {
		r.log.Info("node condition set", "condition", ConditionType, "status", c.Status, "reason", c.Reason)
	}
	r.node, r.sent, r.since = node, c, since
	return nil
}

// leave reports that nobody watches any more: True would be a claim without proof. It is tried once, and not at all if sending
// the last condition failed.
func (r *Reporter) leave() {
	if r.unheard || r.sent == (Condition{}) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := r.send(ctx, stopped); err != nil {
		r.log.Warn("telling the cluster that the agent is stopping failed", "error", err)
	}
}

// jitter varies a duration by ±10 %, so that many nodes don't act at the same moment.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

// Package node tells the cluster what the guard knows of this node: it takes the start-up taint away, keeps a condition on
// the Node up to date, and records events. It is only ever told things; nothing in it can delay or undo enforcement.
//
// It watches nothing. The API server answers each patch with the whole Node, so a taint that came back is seen at the
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
	// The condition is confirmed after firstHeartbeat, and then at intervals that double up to lastHeartbeat: what adds
	// a new Node's taints a second time (Karpenter's registration may) does so in its first minutes.
	firstHeartbeat = 10 * time.Second
	lastHeartbeat  = 5 * time.Minute
	// lookPeriod is how often it is asked what is known: a loop that hangs tells nobody.
	lookPeriod = 10 * time.Second
	// Changes of the condition go out at once up to changesBurst, then at this interval: in a fight over the rules it may
	// change many times a second.
	changesEvery = 30 * time.Second
	changesBurst = 5
	// The pause after a failure doubles from minRetry to maxRetry.
	minRetry = time.Second
	maxRetry = time.Minute
	// maxAttempts bounds how often the taint is removed at a stretch, if somebody changes the taints meanwhile or puts it back.
	maxAttempts = 5
	// leaveTimeout is for the last request: the pod's grace period is short.
	leaveTimeout = 2 * time.Second
)

// Client reads and patches this agent's own Node, and no other. Each call ends within a bounded time.
type Client interface {
	Get(ctx context.Context) (*corev1.Node, error)
	// Patch returns the Node as it is after the patch.
	Patch(ctx context.Context, kind types.PatchType, patch []byte, subresources ...string) (*corev1.Node, error)
}

// Knowledge is what the guard knows at a moment.
type Knowledge struct {
	Condition
	// Admit: pods may start on this node, so the start-up taint may go. That is a question of its own, decided beside
	// whether the node is protected.
	Admit bool
}

// Reporter keeps the Node up to date. Run is for one goroutine, Wake for any.
type Reporter struct {
	client  Client
	known   func() Knowledge
	log     *slog.Logger
	wake    chan struct{}
	changes *rate.Limiter

	node      *corev1.Node // as the API server showed it last; nil before, and when it has to be read again
	sent      Condition
	since     metav1.Time // of sent.Status
	heartbeat time.Time   // when the condition is due, whether it has changed or not
	interval  time.Duration
	unheard   bool // the last condition sent did not arrive
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

// Run reports until ctx ends, and then, in at most a few seconds, that nobody watches the rules any more.
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

// step does what is due, and returns when to look again.
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

// sync makes the Node say what is known, and returns when to look again. Trouble with the taint does not keep the condition
// from being told.
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
		return 0, nil // the answer has shown it: it came back
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

// read gets the Node, and takes over what an earlier agent said of it.
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

// send writes the condition. A strategic merge patch replaces the one of this type and leaves the others alone, so it
// can't conflict with the kubelet's.
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
		r.node = nil // it may be another Node by now, with its taint
		return fmt.Errorf("setting the node's condition: %w", err)
	}
	if c.Status != r.sent.Status {
		r.log.Info("node condition set", "condition", ConditionType, "status", c.Status, "reason", c.Reason)
	}
	r.node, r.sent, r.since = node, c, since
	return nil
}

// leave says that nobody watches any more: True would be a claim without proof. It is tried once, and not at all if the
// condition did not arrive the last time.
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

// jitter spreads what many nodes do at once over ±10 %.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)*0.2*float64(d))
}

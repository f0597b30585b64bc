package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// fakeAPI is a Node that is patched as the API server does it, and that fails when told to. What a real API server does is
// tested in test/e2e.
type fakeAPI struct {
	mu            sync.Mutex
	node          corev1.Node
	gets, patches int
	failing       error
	// fail is asked what to answer to a request of an operation, if it is set.
	fail func(operation string) error
	// hang: a request ends with its context.
	hang bool
	// requested are the operations of the patches, removal is the last patch of the taints.
	requested []string
	removal   string
	// sticky: somebody adds our taint to every Node that is written.
	sticky bool
	// meanwhile is called before a patch is applied: somebody else is quicker.
	meanwhile func(*corev1.Node)
}

// answer is what a request fails with.
func (f *fakeAPI) answer(ctx context.Context, operation string) error {
	f.requested = append(f.requested, operation)
	if f.hang {
		f.mu.Unlock()
		<-ctx.Done()
		f.mu.Lock()
		return ctx.Err()
	}
	if f.fail != nil {
		return f.fail(operation)
	}
	return f.failing
}

func (f *fakeAPI) Get(ctx context.Context) (*corev1.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.gets++
	if err := f.answer(ctx, OpGetNode); err != nil {
		return nil, err
	}
	return f.node.DeepCopy(), nil
}

func (f *fakeAPI) Patch(ctx context.Context, kind types.PatchType, patch []byte, sub ...string) (*corev1.Node, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.patches++
	operation := OpPatchStatus
	if len(sub) == 0 {
		operation, f.removal = OpPatchNode, string(patch)
	}
	if err := f.answer(ctx, operation); err != nil {
		return nil, err
	}
	if f.meanwhile != nil {
		f.meanwhile(&f.node)
	}
	before, _ := json.Marshal(f.node)
	var after []byte
	var err error
	if kind == types.JSONPatchType {
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(patch); err == nil {
			after, err = p.Apply(before)
		}
	} else {
		after, err = strategicpatch.StrategicMergePatch(before, patch, corev1.Node{})
	}
	if err != nil {
		return nil, apierrors.NewInvalid(schema.GroupKind{Kind: "Node"}, f.node.Name, nil)
	}
	var node corev1.Node
	if err := json.Unmarshal(after, &node); err != nil {
		return nil, err
	}
	if len(sub) > 0 {
		node.Spec = f.node.Spec // as the API server does for the subresource status
	} else {
		node.Status = f.node.Status
	}
	if f.sticky && !tainted(&node) {
		node.Spec.Taints = append(node.Spec.Taints, corev1.Taint{Key: TaintKey})
	}
	f.node = node
	return node.DeepCopy(), nil
}

func (f *fakeAPI) set(change func(*fakeAPI)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

func (f *fakeAPI) requests() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gets + f.patches
}

func (f *fakeAPI) taints() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var keys []string
	for _, t := range f.node.Spec.Taints {
		keys = append(keys, t.Key)
	}
	return strings.Join(keys, " ")
}

func (f *fakeAPI) condition() corev1.NodeCondition {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.node.Status.Conditions {
		if c.Type == ConditionType {
			return c
		}
	}
	return corev1.NodeCondition{}
}

var (
	good = Knowledge{Condition{corev1.ConditionTrue, ReasonVerified, "good"}, true}
	bad  = Knowledge{Condition{corev1.ConditionFalse, ReasonNotInForce, "bad"}, false}
)

// world is a reporter and all it deals with, in a bubble of fake time.
type world struct {
	*fakeAPI
	*Reporter
	log  bytes.Buffer
	mu   sync.Mutex
	says Knowledge
	stop func() // stops the reporter and waits
}

// say changes what the guard knows.
func (w *world) say(k Knowledge) {
	w.mu.Lock()
	w.says = k
	w.mu.Unlock()
	w.Wake()
	synctest.Wait()
}

func newWorld(node corev1.Node, first Knowledge) *world {
	w := &world{fakeAPI: &fakeAPI{node: node}, says: first}
	w.Reporter = New(w.fakeAPI, func() Knowledge {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.says
	}, slog.New(slog.NewTextHandler(&w.log, nil)))
	return w
}

func inBubble(t *testing.T, node corev1.Node, first Knowledge, play func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(node, first)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		w.stop = func() { cancel(); <-done }
		synctest.Wait()
		play(t, w)
		w.stop()
	})
}

func nodeWith(keys ...string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
	for _, k := range keys {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: k, Effect: corev1.TaintEffectNoSchedule})
	}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	return n
}

func TestTaintGoesOnceProtected(t *testing.T) {
	inBubble(t, nodeWith("a", TaintKey, "b"), bad, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		if got := w.taints(); got != "a "+TaintKey+" b" {
			t.Fatalf("taints of an unprotected node: %s", got)
		}
		w.say(good)
		if got := w.taints(); got != "a b" {
			t.Errorf("taints of a protected node: %s", got)
		}
	})
	inBubble(t, nodeWith(TaintKey), good, func(t *testing.T, w *world) {
		if got := w.taints(); got != "" {
			t.Errorf("taints of a node that had only ours: %s", got)
		}
	})
}

// Somebody adds a taint between the reading and the patch. It must not get lost.
func TestTaintsOfOthersSurviveAConflict(t *testing.T) {
	inBubble(t, nodeWith(TaintKey), bad, func(t *testing.T, w *world) {
		w.set(func(f *fakeAPI) {
			f.meanwhile = func(n *corev1.Node) {
				n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "new"})
				f.meanwhile = nil
			}
		})
		w.say(good)
		if got := w.taints(); got != "new" {
			t.Errorf("taints: %s", got)
		}
		if strings.Contains(w.log.String(), "failed") {
			t.Errorf("a conflict is no trouble: %s", &w.log)
		}
	})
}

// A controller that changes the taints all the time costs a bounded number of requests, and an attempt, not more.
func TestConflictsAreBounded(t *testing.T) {
	inBubble(t, nodeWith(TaintKey), bad, func(t *testing.T, w *world) {
		w.set(func(f *fakeAPI) {
			f.meanwhile = func(n *corev1.Node) { n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: "more"}) }
		})
		before := w.requests()
		w.say(good)
		if n := w.requests() - before; n > 2*maxAttempts+1 {
			t.Errorf("%d requests in one attempt", n)
		}
		w.set(func(f *fakeAPI) { f.meanwhile = nil })
		time.Sleep(2 * minRetry)
		synctest.Wait()
		if got := w.taints(); got == "" || strings.Contains(got, TaintKey) {
			t.Errorf("taints: %s", got)
		}
	})
}

// The same for one that puts our taint back with every patch.
func TestTaintThatComesBackAtOnce(t *testing.T) {
	inBubble(t, nodeWith(TaintKey), bad, func(t *testing.T, w *world) {
		w.set(func(f *fakeAPI) { f.sticky = true })
		before := w.requests()
		w.say(good)
		if n := w.requests() - before; n > maxAttempts+1 {
			t.Errorf("%d requests at a stretch", n)
		}
		if !strings.Contains(w.log.String(), "puts it back at once") {
			t.Errorf("log: %s", &w.log)
		}
	})
}

// A problem with the taint must not leave an outdated True on the Node.
func TestConditionIsToldInSpiteOfTheTaint(t *testing.T) {
	node := nodeWith(TaintKey)
	node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{Type: ConditionType, Status: corev1.ConditionTrue})
	uncovered := Knowledge{Condition{corev1.ConditionFalse, ReasonNotCovered, "uncovered"}, true}
	inBubble(t, node, bad, func(t *testing.T, w *world) {
		w.set(func(f *fakeAPI) { f.sticky = true })
		w.say(uncovered)
		if c := w.condition(); c.Reason != ReasonNotCovered {
			t.Errorf("condition %+v", c)
		}
		before := w.requests()
		time.Sleep(time.Hour)
		if n := w.requests() - before; n > 200 {
			t.Errorf("%d requests in an hour", n)
		}
		w.stop()
		if c := w.condition(); c.Reason != ReasonStopped {
			t.Errorf("after the end: %+v", c)
		}
	})
}

// Karpenter may put the taints of a NodePool on a new Node a second time.
func TestTaintThatComesBackIsRemovedAtAHeartbeat(t *testing.T) {
	inBubble(t, nodeWith(TaintKey), good, func(t *testing.T, w *world) {
		gets := w.gets
		w.set(func(f *fakeAPI) { f.node.Spec.Taints = []corev1.Taint{{Key: TaintKey}} })
		time.Sleep(2 * firstHeartbeat)
		synctest.Wait()
		if got := w.taints(); got != "" || w.gets != gets {
			t.Errorf("taints %q, %d nodes read for it", got, w.gets-gets)
		}
	})
}

func TestCondition(t *testing.T) {
	inBubble(t, nodeWith(), bad, func(t *testing.T, w *world) {
		c := w.condition()
		if c.Status != corev1.ConditionFalse || c.Reason != ReasonNotInForce || c.Message != "bad" || c.LastTransitionTime.IsZero() {
			t.Errorf("condition %+v", c)
		}
		time.Sleep(time.Hour)
		kept := w.condition()
		if !kept.LastTransitionTime.Equal(&c.LastTransitionTime) || kept.LastHeartbeatTime.Equal(&c.LastHeartbeatTime) {
			t.Errorf("after an hour: %+v", kept)
		}
		w.say(good)
		if now := w.condition(); now.Status != corev1.ConditionTrue || now.LastTransitionTime.Equal(&c.LastTransitionTime) {
			t.Errorf("after the change: %+v", now)
		}
		if len(w.fakeAPI.node.Status.Conditions) != 2 {
			t.Errorf("conditions %+v", w.fakeAPI.node.Status.Conditions)
		}
		w.stop()
		if c := w.condition(); c.Status != corev1.ConditionUnknown || c.Reason != ReasonStopped {
			t.Errorf("after the end: %+v", c)
		}
	})
}

// When an agent comes back to a node in the same state, that is not a transition.
func TestTransitionTimeOutlivesARestart(t *testing.T) {
	node := nodeWith()
	since := metav1.NewTime(time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC))
	node.Status.Conditions = append(node.Status.Conditions, corev1.NodeCondition{
		Type: ConditionType, Status: corev1.ConditionTrue, LastTransitionTime: since})
	inBubble(t, node, good, func(t *testing.T, w *world) {
		if c := w.condition(); !c.LastTransitionTime.Equal(&since) || c.LastHeartbeatTime.IsZero() {
			t.Errorf("condition %+v", c)
		}
	})
}

func TestRequestsOfAQuietHour(t *testing.T) {
	inBubble(t, nodeWith(TaintKey), good, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		before := w.requests()
		time.Sleep(10 * time.Hour)
		if n := w.requests() - before; n < 100 || n > 150 {
			t.Errorf("%d requests in ten quiet hours", n)
		}
	})
}

// Changes go out at once up to the burst, then one in a while; nothing else is held back for it.
func TestChangesAreBoundedExactly(t *testing.T) {
	inBubble(t, nodeWith(), good, func(t *testing.T, w *world) {
		time.Sleep(time.Hour)
		for before := w.requests(); w.requests() == before; { // so that no heartbeat is near
			time.Sleep(time.Second)
			synctest.Wait()
		}
		sent := func(says ...Knowledge) int {
			before := w.requests()
			for _, k := range says {
				w.say(k)
			}
			return w.requests() - before
		}
		if n := sent(bad, good, bad, good, bad, good, bad, good, bad); n != changesBurst {
			t.Errorf("%d changes at once", n)
		}
		time.Sleep(changesEvery - time.Second)
		if n := sent(good, bad); n != 0 {
			t.Errorf("%d changes too early", n)
		}
		time.Sleep(time.Second)
		if n := sent(good, bad, good); n != 1 {
			t.Errorf("%d changes when one is due", n)
		}
	})
}

func TestFlappingIsBounded(t *testing.T) {
	inBubble(t, nodeWith(), good, func(t *testing.T, w *world) {
		before := w.requests()
		for range 3000 {
			w.say(bad)
			w.say(good)
			time.Sleep(100 * time.Millisecond)
		}
		if n := w.requests() - before; n > 30 {
			t.Errorf("%d requests in five minutes", n)
		}
		w.say(bad)
		time.Sleep(changesEvery + lookPeriod)
		synctest.Wait()
		if c := w.condition(); c.Status != corev1.ConditionFalse {
			t.Errorf("after the flapping: %+v", c)
		}
	})
}

func TestTroubleIsSaidOnceAndBacksOff(t *testing.T) {
	inBubble(t, nodeWith(TaintKey), bad, func(t *testing.T, w *world) {
		before := w.requests()
		w.set(func(f *fakeAPI) { f.failing = errors.New("no route to host") })
		w.say(good)
		for range 3600 {
			w.Wake()
			time.Sleep(time.Second)
		}
		if n := w.requests() - before; n < 50 || n > 90 {
			t.Errorf("%d requests in an hour of trouble", n)
		}
		w.set(func(f *fakeAPI) { f.failing = nil })
		time.Sleep(2 * maxRetry)
		synctest.Wait()
		if got := w.taints(); got != "" || w.condition().Status != corev1.ConditionTrue {
			t.Errorf("after the trouble: taints %q, condition %+v", got, w.condition())
		}
		w.stop()
		if failed, again := strings.Count(w.log.String(), "failed"), strings.Count(w.log.String(), "again\""); failed != 1 || again != 1 {
			t.Errorf("log:\n%s", &w.log)
		}
	})
}

// An API server that can't be reached must not be waited for at the end.
func TestNothingIsSentAtTheEndOfTrouble(t *testing.T) {
	inBubble(t, nodeWith(), good, func(t *testing.T, w *world) {
		w.set(func(f *fakeAPI) { f.failing = errors.New("no route to host") })
		w.say(bad)
		before := w.requests()
		w.stop()
		if n := w.requests() - before; n != 0 {
			t.Errorf("%d requests", n)
		}
	})
}

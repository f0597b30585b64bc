package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// stepping is a reporter that nobody runs, so that each of its steps can be looked at.
func stepping(t *testing.T, node corev1.Node, first Knowledge, play func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { play(t, newWorld(node, first)) })
}

// requestsOf makes a step and returns the requests it made, and when it wants the next step.
func (w *world) requestsOf(t *testing.T) (operations []string, next time.Duration) {
	w.requested = nil
	next = w.step(t.Context())
	return w.requested, next
}

func within(d, around time.Duration) bool { return d >= around*9/10 && d <= around*11/10 }

var (
	conflicting = apierrors.NewConflict(schema.GroupResource{Resource: "nodes"}, "n", errors.New("changed"))
	forbidden   = apierrors.NewForbidden(schema.GroupResource{Resource: "nodes"}, "n", errors.New("no"))
)

// What one step requests, when the next is due, and what is logged.
func TestOneStep(t *testing.T) {
	repeat := func(n int, operations ...string) (list []string) {
		for range n {
			list = append(list, operations...)
		}
		return list
	}
	always := func(operation string, err error) func(*world) {
		return func(w *world) {
			w.fail = func(o string) error {
				if o == operation {
					return err
				}
				return nil
			}
		}
	}
	for _, c := range []struct {
		name     string
		says     Knowledge
		change   func(*world)
		requests []string
		trouble  string // a part of what is logged about it
		says2    string // a part of the other lines
	}{
		{"admitted", good, func(*world) {}, []string{OpGetNode, OpPatchNode, OpPatchStatus}, "", "start-up taint removed"},
		{"not admitted", bad, func(*world) {}, []string{OpGetNode, OpPatchStatus}, "", "node condition set"},
		{"the node can't be read", good, always(OpGetNode, forbidden), []string{OpGetNode}, "reading the node: ", ""},
		{"the condition can't be set", bad, always(OpPatchStatus, forbidden), []string{OpGetNode, OpPatchStatus}, "setting the node's condition: ", ""},
		{"the taint can't be removed", good, always(OpPatchNode, forbidden), []string{OpGetNode, OpPatchNode, OpPatchStatus},
			"removing the taint imds-guard.io/agent-not-ready from the node: nodes", ""},
		{"the taint is contended", good, always(OpPatchNode, conflicting),
			slices.Concat([]string{OpGetNode}, repeat(maxAttempts-1, OpPatchNode, OpGetNode), []string{OpPatchNode, OpPatchStatus}),
			"removing the taint imds-guard.io/agent-not-ready from the node: Operation cannot be fulfilled", ""},
		{"the taint comes back", good, func(w *world) { w.sticky = true },
			slices.Concat([]string{OpGetNode}, repeat(maxAttempts, OpPatchNode), []string{OpPatchStatus}), "puts it back at once", ""},
		{"the node can't be read after a conflict", good, func(w *world) {
			w.fail = func(o string) error {
				switch {
				case o == OpPatchNode:
					return conflicting
				case o == OpGetNode && slices.Contains(w.requested, OpPatchNode):
					return forbidden
				}
				return nil
			}
		}, []string{OpGetNode, OpPatchNode, OpGetNode, OpPatchStatus}, "reading the node: ", ""},
	} {
		stepping(t, nodeWith(TaintKey), c.says, func(t *testing.T, w *world) {
			c.change(w)
			requests, next := w.requestsOf(t)
			if !slices.Equal(requests, c.requests) {
				t.Errorf("%s: requests %q, want %q", c.name, requests, c.requests)
			}
			if c.trouble == "" {
				// The first heartbeat comes about when the next look does.
				if next > lookPeriod || !within(next, firstHeartbeat) || strings.Contains(w.log.String(), "failed") {
					t.Errorf("%s: the next step is due in %s; the log is\n%s", c.name, next, &w.log)
				}
			} else if !within(next, minRetry) || strings.Count(w.log.String(), "failed") != 1 || !strings.Contains(w.log.String(), c.trouble) {
				t.Errorf("%s: the next step is due in %s; the log is\n%s", c.name, next, &w.log)
			}
			if c.says2 != "" && !strings.Contains(w.log.String(), c.says2) {
				t.Errorf("%s: the log is\n%s", c.name, &w.log)
			}
			if c.trouble != "" && strings.Contains(w.log.String(), "start-up taint removed") != w.sticky {
				t.Errorf("%s: the log is\n%s", c.name, &w.log)
			}
		})
	}
}

// A conflict is not a failure, whichever of the two errors reports it.
func TestConflictOfEitherKind(t *testing.T) {
	invalid := apierrors.NewInvalid(schema.GroupKind{Kind: "Node"}, "n", nil)
	for _, err := range []error{conflicting, invalid} {
		stepping(t, nodeWith(TaintKey), good, func(t *testing.T, w *world) {
			w.fail = func(o string) error {
				if o == OpPatchNode {
					w.fail = nil
					return err
				}
				return nil
			}
			requests, _ := w.requestsOf(t)
			if want := []string{OpGetNode, OpPatchNode, OpGetNode, OpPatchNode, OpPatchStatus}; !slices.Equal(requests, want) || w.taints() != "" {
				t.Errorf("%v: requests %q, taints %q", err, requests, w.taints())
			}
		})
	}
}

// While requests fail, the taint is tried once per step, and the pauses double; after that, everything starts over.
func TestStepsInTrouble(t *testing.T) {
	stepping(t, nodeWith(TaintKey), good, func(t *testing.T, w *world) {
		w.sticky = true
		for round := range 2 {
			w.step(t.Context()) // the first failure, of which TestOneStep is
			pause := minRetry
			for i := range 10 {
				if early, _ := w.requestsOf(t); len(early) != 0 {
					t.Errorf("requests before the pause is over: %q", early)
				}
				time.Sleep(time.Until(w.notBefore))
				requests, next := w.requestsOf(t)
				pause = min(2*pause, maxRetry)
				if n := strings.Count(strings.Join(requests, " "), OpPatchNode); n != 1 || !within(next, pause) {
					t.Errorf("round %d, try %d: %d removals, next in %s, want about %s", round, i+2, n, next, pause)
				}
			}
			w.sticky = false
			time.Sleep(time.Until(w.notBefore))
			w.step(t.Context())
			if w.failures != 0 || w.taints() != "" {
				t.Errorf("round %d: %d failures, taints %q", round, w.failures, w.taints())
			}
			w.sticky = true
			w.set(func(f *fakeAPI) { f.node.Spec.Taints = []corev1.Taint{{Key: TaintKey}} })
			w.Reporter.node = nil // as after any failure
		}
		if failed, again := strings.Count(w.log.String(), "failed"), strings.Count(w.log.String(), "can be used again"); failed != 2 || again != 2 {
			t.Errorf("%d lines about trouble, %d about its end:\n%s", failed, again, &w.log)
		}
	})
}

// The end of even a single failure is logged.
func TestOneFailure(t *testing.T) {
	stepping(t, nodeWith(), bad, func(t *testing.T, w *world) {
		w.failing = forbidden
		time.Sleep(w.step(t.Context()))
		w.failing = nil
		w.step(t.Context())
		if !strings.Contains(w.log.String(), "can be used again\" failures=1") {
			t.Errorf("the log is\n%s", &w.log)
		}
	})
}

// The API server may ask for a longer pause; a shorter one than ours is ignored.
func TestDelayThatTheServerAsksFor(t *testing.T) {
	for _, c := range []struct{ asked, want time.Duration }{{40 * time.Second, 40 * time.Second}, {time.Second, 8 * time.Second}} {
		stepping(t, nodeWith(), bad, func(t *testing.T, w *world) {
			w.failing = forbidden
			for range 3 {
				time.Sleep(w.step(t.Context()))
			}
			w.failing = apierrors.NewTooManyRequests("later", int(c.asked/time.Second))
			if next := w.step(t.Context()); !within(next, c.want) {
				t.Errorf("asked for %s, the next step is due in %s", c.asked, next)
			}
		})
	}
}

// A condition that did not arrive is sent again as soon as the pause is over, to the Node that is there by then.
func TestConditionThatDidNotArrive(t *testing.T) {
	stepping(t, nodeWith(), bad, func(t *testing.T, w *world) {
		w.step(t.Context())
		w.fail = func(o string) error {
			if o == OpPatchStatus {
				return forbidden
			}
			return nil
		}
		w.says = good
		time.Sleep(w.step(t.Context()))
		if w.condition().Status != corev1.ConditionFalse || w.fail(OpPatchStatus) == nil {
			t.Fatalf("it arrived: %+v", w.condition())
		}
		w.fail = nil
		requests, _ := w.requestsOf(t)
		if want := []string{OpGetNode, OpPatchStatus}; !slices.Equal(requests, want) || w.condition().Status != corev1.ConditionTrue {
			t.Errorf("requests %q, condition %+v", requests, w.condition())
		}
	})
}

// The heartbeats become rarer, up to a bound. A look comes in between, and is no request.
func TestHeartbeatsDouble(t *testing.T) {
	stepping(t, nodeWith(), good, func(t *testing.T, w *world) {
		next := w.step(t.Context())
		interval, last := firstHeartbeat, time.Now()
		for range 10 {
			due := time.Until(w.heartbeat)
			for w.requested = nil; len(w.requested) == 0; {
				if next > lookPeriod || next <= 0 {
					t.Fatalf("the next step is due in %s", next)
				}
				time.Sleep(next)
				next = w.step(t.Context())
			}
			if passed := time.Since(last); passed != due {
				t.Errorf("a heartbeat after %s, due after %s", passed, due)
			}
			if passed := time.Since(last); !within(passed, interval) {
				t.Errorf("a heartbeat after %s, want about %s", passed, interval)
			}
			interval, last = min(2*interval, lastHeartbeat), time.Now()
		}
		if next := w.step(t.Context()); next != lookPeriod {
			t.Errorf("long before a heartbeat the next step is due in %s", next)
		}
		if strings.Count(w.log.String(), "node condition set") != 1 {
			t.Errorf("the log is\n%s", &w.log)
		}
	})
}

// The answer to a heartbeat shows that the taint is back: it is removed at once, if pods may start.
func TestTaintInAnAnswer(t *testing.T) {
	for _, k := range []Knowledge{good, {good.Condition, false}} {
		stepping(t, nodeWith(), k, func(t *testing.T, w *world) {
			w.meanwhile = func(n *corev1.Node) {
				n.Spec.Taints = []corev1.Taint{{Key: TaintKey}}
				w.meanwhile = nil
			}
			if next := w.step(t.Context()); (next == 0) != k.Admit {
				t.Errorf("admitted %t: the next step is due in %s", k.Admit, next)
			}
			w.step(t.Context())
			if (w.taints() == "") != k.Admit {
				t.Errorf("admitted %t: taints %q", k.Admit, w.taints())
			}
		})
	}
}

// The patch of the taints does nothing if the list is not the one last seen, and never writes an empty one.
func TestPatchOfTheTaints(t *testing.T) {
	for _, c := range []struct{ taints, want string }{
		{TaintKey, `[{"op":"test","path":"/spec/taints","value":[OURS]},{"op":"remove","path":"/spec/taints"}]`},
		{TaintKey + " " + TaintKey, `[{"op":"test","path":"/spec/taints","value":[OURS,OURS]},{"op":"remove","path":"/spec/taints"}]`},
		{"a " + TaintKey, `[{"op":"test","path":"/spec/taints","value":[A,OURS]},{"op":"replace","path":"/spec/taints","value":[A]}]`},
	} {
		stepping(t, nodeWith(strings.Fields(c.taints)...), good, func(t *testing.T, w *world) {
			w.step(t.Context())
			want := strings.NewReplacer("OURS", `{"key":"`+TaintKey+`","effect":"NoSchedule"}`, "A", `{"key":"a","effect":"NoSchedule"}`).Replace(c.want)
			if w.removal != want {
				t.Errorf("of %q: %s, want %s", c.taints, w.removal, want)
			}
		})
	}
}

// The time of the last transition belongs to the status and survives the agent; if it is unknown, it is now.
func TestTransitionTime(t *testing.T) {
	for _, c := range []struct {
		name string
		node func(start time.Time) []corev1.NodeCondition
		want time.Duration // from the start
	}{
		{"no condition yet", func(time.Time) []corev1.NodeCondition { return nil }, 0},
		{"the same", func(start time.Time) []corev1.NodeCondition {
			return []corev1.NodeCondition{{Type: ConditionType, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(start.Add(-time.Hour))}}
		}, -time.Hour},
		{"another", func(start time.Time) []corev1.NodeCondition {
			return []corev1.NodeCondition{{Type: ConditionType, Status: corev1.ConditionUnknown, LastTransitionTime: metav1.NewTime(start.Add(-time.Hour))}}
		}, 0},
		{"without a time", func(time.Time) []corev1.NodeCondition {
			return []corev1.NodeCondition{{Type: ConditionType, Status: corev1.ConditionTrue}}
		}, 0},
	} {
		stepping(t, nodeWith(), good, func(t *testing.T, w *world) {
			start := time.Now()
			w.fakeAPI.node.Status.Conditions = append(w.fakeAPI.node.Status.Conditions, c.node(start)...)
			w.step(t.Context())
			time.Sleep(2 * firstHeartbeat)
			w.step(t.Context())
			got := w.condition()
			if !got.LastTransitionTime.Time.Equal(start.Add(c.want)) || !got.LastHeartbeatTime.Time.Equal(time.Now()) {
				t.Errorf("%s: %+v, want a transition at %s", c.name, got, start.Add(c.want))
			}
		})
	}
}

// What an agent leaves behind: a condition that was set is withdrawn once, and the exit waits no longer than that.
func TestLeave(t *testing.T) {
	claimed := nodeWith()
	claimed.Status.Conditions = append(claimed.Status.Conditions, corev1.NodeCondition{Type: ConditionType, Status: corev1.ConditionTrue})
	for _, c := range []struct {
		name     string
		node     corev1.Node
		before   func(*testing.T, *world)
		requests []string
		took     time.Duration
		log      string
	}{
		{"nothing was said", nodeWith(), func(*testing.T, *world) {}, nil, 0, ""},
		{"the node could never be read", claimed, func(t *testing.T, w *world) {
			w.failing = forbidden
			w.step(t.Context())
			w.failing = nil
		}, nil, 0, ""},
		{"it was said", nodeWith(), func(t *testing.T, w *world) { w.step(t.Context()) }, []string{OpPatchStatus}, 0, "node condition set"},
		{"an earlier agent said it", claimed, func(t *testing.T, w *world) { _ = w.read(t.Context()) }, []string{OpPatchStatus}, 0, "node condition set"},
		{"the last word did not arrive", nodeWith(), func(t *testing.T, w *world) {
			w.step(t.Context())
			time.Sleep(time.Hour)
			w.failing = forbidden
			w.step(t.Context())
			w.failing = nil
		}, nil, 0, ""},
		{"it fails", nodeWith(), func(t *testing.T, w *world) {
			w.step(t.Context())
			w.failing = forbidden
		}, []string{OpPatchStatus}, 0, "telling the cluster that the agent is stopping failed"},
		{"it hangs", nodeWith(), func(t *testing.T, w *world) {
			w.step(t.Context())
			w.hang = true
		}, []string{OpPatchStatus}, leaveTimeout, "telling the cluster that the agent is stopping failed"},
	} {
		stepping(t, c.node, good, func(t *testing.T, w *world) {
			c.before(t, w)
			w.requested = nil
			w.log.Reset()
			start := time.Now()
			w.leave()
			if took := time.Since(start); !slices.Equal(w.requested, c.requests) || took != c.took {
				t.Errorf("%s: requests %q in %s", c.name, w.requested, took)
			}
			if got := w.log.String(); !strings.Contains(got, c.log) || (got == "") != (c.log == "") {
				t.Errorf("%s: the log is\n%s", c.name, got)
			}
		})
	}
}

// A request cut off by the end of the agent is not a failure.
func TestTheEndIsNoTrouble(t *testing.T) {
	inBubble(t, nodeWith(), bad, func(t *testing.T, w *world) {
		w.set(func(f *fakeAPI) { f.hang = true })
		w.say(good)
		w.stop()
		if strings.Contains(w.log.String(), "failed") {
			t.Errorf("the log is\n%s", &w.log)
		}
	})
}

// What many nodes do at once is spread over a tenth, to both sides.
func TestJitter(t *testing.T) {
	const d = 10 * time.Second
	less, more := 0, 0
	for range 1000 {
		switch got := jitter(d); {
		case !within(got, d):
			t.Fatalf("%s", got)
		case got < d*19/20:
			less++
		case got > d*21/20:
			more++
		}
	}
	if less == 0 || more == 0 {
		t.Errorf("%d of 1000 much shorter, %d much longer", less, more)
	}
}

// The reporter stops with its context even in the middle of a pause.
func TestStopInAPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(nodeWith(), good)
		w.failing = forbidden
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { w.Run(ctx); close(done) }()
		time.Sleep(time.Hour)
		start := time.Now()
		cancel()
		<-done
		if took := time.Since(start); took != 0 {
			t.Errorf("it took %s", took)
		}
	})
}

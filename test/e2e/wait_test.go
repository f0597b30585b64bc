//go:build e2e

// Waiting: always for a state, never for a time.

package e2e

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// patience is how long a state may take to come. It is far more than any of them needs, on a slow machine too.
const patience = 3 * time.Minute

// poll calls check until it returns nil, or returns its last error after the time is over.
func poll(within time.Duration, check func() error) error {
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not so after %s: %w", within, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// wait waits until check returns nil, and returns how long that took.
func wait(t *testing.T, what string, check func() error) time.Duration {
	t.Helper()
	started := time.Now()
	if err := poll(patience, check); err != nil {
		t.Fatalf("waiting for %s: %v", what, err)
	}
	return time.Since(started)
}

// step says what a test does next.
func step(t *testing.T, format string, arguments ...any) {
	t.Helper()
	progress("%s: %s", t.Name(), fmt.Sprintf(format, arguments...))
}

// readySince returns nil when the kubelet itself has said, later than since, that the node is ready.
func readySince(object *corev1.Node, since time.Time) error {
	for _, condition := range object.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		// The API's times are whole seconds.
		if condition.Status == corev1.ConditionTrue && !condition.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
			return nil
		}
		return fmt.Errorf("the node is not ready: %s: %s", condition.Status, condition.Message)
	}
	return fmt.Errorf("the node has no condition Ready yet")
}

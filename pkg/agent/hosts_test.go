package agent

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// A list that can't be kept up to date is reported once that has lasted, in block mode: nothing else would say that block is
// not in force.
func TestUnlisted(t *testing.T) {
	for mode, tells := range map[policy.HostNetwork]bool{policy.Block: true, policy.Audit: false} {
		synctest.Test(t, func(t *testing.T) {
			h := &hosts{
				mode: mode, resync: 10 * time.Second, log: slog.New(slog.DiscardHandler), waker: newWaker(),
				place: func() string { return "" }, // there is no layer
				list:  func() ([]pods.Pod, bool) { return nil, true },
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() { h.run(ctx); close(ended) }()
			time.Sleep(hostsPatience - time.Second)
			if err := h.unlisted(); err != nil {
				t.Errorf("%s: at the start: %v", mode, err)
			}
			time.Sleep(2 * time.Second)
			if err := h.unlisted(); errors.Is(err, cgroup.ErrNoMaps) != tells {
				t.Errorf("%s: after a minute: %v", mode, err)
			}
			cancel()
			<-ended
		})
	}
}

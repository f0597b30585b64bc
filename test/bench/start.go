//go:build linux

// The time from the agent's start to all its layers in force.

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

const startGoal = 150 * time.Millisecond

func measureStart(ctx context.Context, b *bench) (result, error) {
	r := result{how: "From just before `imds-guard run` is executed (including nsenter, which starts it) until the " +
		"observers above see all layers of both families in place. Before each start the agent is stopped and `imds-guard cleanup` is run."}
	for _, backend := range backends {
		times, err := startTimes(ctx, b, backend)
		if err != nil {
			return result{}, fmt.Errorf("%s: %w", backend, err)
		}
		worst := quantile(times, 1)
		r.rows = append(r.rows, row{
			what:   string(backend),
			goal:   "≤ " + milliseconds(startGoal),
			result: fmt.Sprintf("median %s, max %s, n = %d", milliseconds(median(times)), milliseconds(worst), len(times)),
			met:    verdict(worst <= startGoal),
		})
		b.log.Printf("start: %s: %s", backend, r.rows[len(r.rows)-1].result)
	}
	return r, nil
}

func startTimes(ctx context.Context, b *bench, backend rules.Backend) (times []time.Duration, err error) {
	err = withNode(ctx, backend, func(n *node) error {
		for range b.sizes.starts {
			took, err := startOnce(ctx, b, n)
			if err != nil {
				return err
			}
			times = append(times, took)
		}
		return nil
	})
	return times, err
}

func startOnce(ctx context.Context, b *bench, n *node) (time.Duration, error) {
	absent, err := n.countAll()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	a, err := b.startAgent(ctx, n)
	if err != nil {
		return 0, err
	}
	seen, err := n.waitStarted(ctx, absent)
	if err != nil {
		return 0, a.explain(err)
	}
	if err := wait(ctx, 200*time.Millisecond); err != nil {
		return 0, err
	}
	if err := a.stop(); err != nil {
		return 0, err
	}
	for _, f := range imds.Families {
		if err := n.verify(ctx, f); err != nil {
			return 0, a.explain(err)
		}
	}
	return seen.Sub(began), b.cleanup(ctx, n)
}

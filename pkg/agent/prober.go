// Probes at intervals.

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/probe"
)

const (
	// probeAgain is when to probe again after something was not stopped, unless the interval is shorter.
	probeAgain = 30 * time.Second
	// firstProbes is how long pods may have to wait for the first probes, once the layers are in force.
	firstProbes = 10 * time.Second
	// freshLook is how long to wait for a reading of every layer.
	freshLook = 3 * time.Second
)

// prober probes at intervals and keeps the last results. All methods but run may be called from any goroutine.
type prober struct {
	// makeAll makes all probes; own keeps them out of the counts, nil if nothing does.
	makeAll  func(context.Context) []Probe
	own      *ownPackets
	interval time.Duration
	log      *slog.Logger
	// ended is called with the results after each round of probes. It must not block.
	ended func([]Probe)

	mu      sync.Mutex
	results []Probe
	last    time.Time // when they ended
	begun   time.Time // when pending was first called
}

// run probes until ctx ends. It first removes what a killed probe left behind.
func (p *prober) run(ctx context.Context) {
	if _, err := probe.Cleanup(); err != nil {
		p.log.Warn("can't remove what an earlier probe left behind", "error", err)
	}
	if p.interval == 0 {
		return
	}
	for {
		results := p.makeAll(ctx)
		if ctx.Err() != nil {
			return // a round that was cut short proves nothing
		}
		p.mu.Lock()
		before := p.results
		p.results, p.last = withAnswers(before, results), time.Now()
		p.mu.Unlock()
		p.report(before, results)
		p.ended(results)
		again := p.interval
		if slices.ContainsFunc(results, func(r Probe) bool { return r.Result != probe.Stopped }) {
			again = min(again, probeAgain)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
}

// withAnswers keeps an answered probe until it is seen stopped: a later probe that could not be made proves nothing.
func withAnswers(before, now []Probe) []Probe {
	kept := slices.Clone(now)
	for _, b := range before {
		known := slices.ContainsFunc(now, func(n Probe) bool { return n.isOf(b) && n.Result != probe.Error })
		if b.Result == probe.Answered && !known {
			kept = append(kept, b)
		}
	}
	return kept
}

// report logs each result that differs from the last one.
func (p *prober) report(before, now []Probe) {
	for _, r := range now {
		if slices.ContainsFunc(before, func(b Probe) bool { return b.isOf(r) && b.Result == r.Result }) {
			continue
		}
		log := p.log.With("path", r.Path, "family", r.Family)
		switch r.Result {
		case probe.Answered:
			log.Error("a probe was let through, so pods' packets are too", "detail", r.Detail)
		case probe.Error:
			log.Warn("a probe could not be sent, or its outcome is unknown", "detail", r.Detail)
		default:
			log.Info("a probe was stopped", "by", r.StoppedBy, "detail", r.Detail)
		}
	}
}

// evidence returns what the last probes prove. If they are older than three intervals, a probe hangs.
func (p *prober) evidence() guard.Evidence {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := probesEvidence(p.results)
	if age := time.Since(p.last); e.NotProbed == nil && p.results != nil && age > 3*p.interval {
		e.NotProbed = fmt.Errorf("the last probes ended %s ago", age.Round(time.Second))
	}
	return e
}

// pending reports whether the first probes are still to come and not overdue, counted from its first call.
func (p *prober) pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun.IsZero() {
		p.begun = time.Now()
	}
	return p.interval > 0 && p.results == nil && time.Since(p.begun) < firstProbes
}

// freshLooks has every layer read by a look that starts only now, and returns the result.
func (a *agent) freshLooks(ctx context.Context) []guard.LayerStatus {
	asked := time.Now()
	a.guard.Wake()
	for deadline := asked.Add(freshLook); ; time.Sleep(2 * time.Millisecond) {
		s, fresh := a.guard.Status(), true
		for _, l := range s.Layers {
			fresh = fresh && l.Began.After(asked)
		}
		if fresh || time.Now().After(deadline) || ctx.Err() != nil {
			return s.Layers
		}
	}
}

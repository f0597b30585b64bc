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
	// probeAgain is after what time to try again if something was not stopped, unless the interval is shorter.
	probeAgain = 30 * time.Second
	// firstProbes is how long pods may have to wait for the first probes, once the layers are in force.
	firstProbes = 10 * time.Second
	// freshLook is for how long to wait for a reading of every layer.
	freshLook = 3 * time.Second
)

// prober probes at intervals, and knows what the last probes came to. All but run may be called from any goroutine.
type prober struct {
	// makeAll makes all probes; own is what keeps them out of counts, nil if nothing does.
	makeAll  func(context.Context) []Probe
	own      *ownPackets
	interval time.Duration
	log      *slog.Logger
	// ended is called after the probes with what came of them. It must not block.
	ended func([]Probe)

	mu      sync.Mutex
	results []Probe
	last    time.Time // when they ended
	begun   time.Time // when somebody asked first whether they are pending
}

// run probes until ctx ends. It begins by removing what a probe has left that was killed.
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
			return // what was looked at meanwhile proves nothing
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

// withAnswers keeps what was answered until it is seen stopped: that a later probe could not be made is no proof.
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

// report logs each result that is not that of the time before.
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

// evidence is what the last probes prove. That they were longer ago than three intervals says that one hangs.
func (p *prober) evidence() guard.Evidence {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := probesEvidence(p.results)
	if age := time.Since(p.last); e.NotProbed == nil && p.results != nil && age > 3*p.interval {
		e.NotProbed = fmt.Errorf("the last probes ended %s ago", age.Round(time.Second))
	}
	return e
}

// pending reports that the first probes have not ended yet, and are not overdue: it has not been asked for that long.
func (p *prober) pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.begun.IsZero() {
		p.begun = time.Now()
	}
	return p.interval > 0 && p.results == nil && time.Since(p.begun) < firstProbes
}

// freshLooks has every layer read by a look that begins only now, and returns what is known then.
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

// One layer's keeper: when to look, when to repair, and what to report.

package guard

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// Requested looks happen at once up to the burst, then at this rate: a look may cost milliseconds for forked commands, and
// another agent may write rules a thousand times a second.
const (
	looksPerSecond = 20
	looksBurst     = 50
)

// Lines about single drifts and their repairs are written at once up to the burst, then at this rate: the start of another
// program may move rules a dozen times and be over before it counts as a fight.
const (
	linesEvery = 10 * time.Second
	linesBurst = 3
)

// keeper owns a layer. Everything except Wake and id belongs to run's goroutine.
type keeper struct {
	*Config
	layer  Layer
	id     layer.ID     // the layer's, for goroutines that must not call the layer
	log    *slog.Logger // includes the layer's name and family
	policy func() *policy.Policy
	place  *place
	wake   chan struct{}
	looks  *rate.Limiter
	lines  *rate.Limiter // about drifts
	notes  *rate.Limiter // about details of states that are no drift

	last  layer.State // as the last look, with its repair, left it; zero before the first, and in a new place
	where string      // the Place of the last reading
	note  string      // the last detail of a reading that is no drift
	loud  bool        // the current drift is worth its lines
	pacer pacer
	fight fight
}

func newKeeper(l Layer, c *Config, p func() *policy.Policy, at *place) *keeper {
	id := l.ID()
	return &keeper{
		Config: c, layer: l, id: id, policy: p, place: at,
		log:   c.Log.With("layer", id.Name, "family", id.Family),
		wake:  make(chan struct{}, 1),
		looks: rate.NewLimiter(looksPerSecond, looksBurst),
		lines: rate.NewLimiter(rate.Every(linesEvery), linesBurst),
		notes: rate.NewLimiter(rate.Every(linesEvery), linesBurst),
		pacer: newPacer(),
	}
}

// Wake asks for a look. It never blocks.
func (k *keeper) Wake() {
	k.place.asked(time.Now())
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run looks whenever it is woken, a repair is due, or the resync period has passed, until ctx ends. looked is called once,
// after the first look.
func (k *keeper) run(ctx context.Context, looked func()) {
	timer := time.NewTimer(k.look())
	defer timer.Stop()
	looked()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-timer.C:
		}
		if k.looks.Wait(ctx) != nil {
			return
		}
		timer.Reset(k.look())
	}
}

// look looks once, repairs what it may, reads that back, and returns when to look again. What is missing is put back before
// anything else is done, even before a log line is written, because packets get through in the meantime.
func (k *keeper) look() (again time.Duration) {
	began, suspect, p := time.Now(), k.Suspect(k.id), *k.policy()
	k.place.answering()
	found := k.read(p)
	if found.Place != k.where {
		k.where, k.last = found.Place, layer.State{}
	}
	repaired, err := false, error(nil)
	again = k.Resync
	if found.State.Drifted() && found.State != layer.Unknown {
		if wait := k.pacer.wait(!found.State.Protects(), found.Detail); wait > 0 {
			again = min(again, wait)
		} else {
			repaired, err = true, k.layer.Repair(p, found)
		}
	}
	if found.State.Drifted() && found.State != k.last {
		k.drifted(found.Reading, suspect)
	}
	now := found.Reading
	if repaired {
		after := k.read(p)
		now, found.Again = after.Reading, after.Again
		if now.Place == found.Place {
			again = k.judge(found.Reading, now, err, time.Since(began), suspect)
		} else {
			again = minRetry // missing rules in a new place say nothing about the repair
		}
	}
	if found.Again > 0 {
		again = min(again, found.Again)
	}
	k.settled(now)
	k.place.looked(k.fight.on)
	k.Looked()
	return again
}

// read looks and puts the result on the board, before anything else that may take long.
func (k *keeper) read(p policy.Policy) layer.Finding {
	began := time.Now()
	f := k.layer.Look(p, k.place.doubt)
	k.place.show(f.Reading, began, time.Now())
	k.Recorder.Looked(k.id)
	if f.Err != nil {
		k.Recorder.Failed(k.id, f.Err)
	}
	return f
}

// drifted counts and reports a drift, once for as long as it lasts. On a new node, where the rules are not there yet when the
// agent starts, that is not a drift.
func (k *keeper) drifted(r layer.Reading, suspect string) {
	if k.last == (layer.State{}) && r.State == layer.Missing {
		return
	}
	k.Recorder.Drift(k.id, r.State)
	if r.State != layer.Unknown && k.fight.drifted(time.Now()) {
		k.log.Warn("something keeps undoing the repairs; they continue at a limited rate and are not logged one by one",
			"reason", r.State, "detail", r.Detail, "suspect", suspect)
	}
	// A state that can't be read is not part of a fight, and persists until somebody looks into it.
	k.loud = r.State == layer.Unknown || !k.fight.on && k.lines.Allow()
	k.log.Log(context.Background(), k.level(slog.LevelWarn), "rules drifted",
		"reason", r.State, "detail", r.Detail, "suspect", suspect)
}

// level keeps the log quiet during a fight.
func (k *keeper) level(normal slog.Level) slog.Level {
	if k.loud {
		return normal
	}
	return slog.LevelDebug
}

// judge records the outcome of the repair of found, where now is what was read after it, and returns when to look again.
func (k *keeper) judge(found, now layer.Reading, err error, took time.Duration, suspect string) (again time.Duration) {
	ok := err == nil && !now.State.Drifted()
	install := k.last == (layer.State{}) && found.State == layer.Missing
	switch {
	case !install:
		k.Recorder.Repaired(k.id, ok, took)
	case ok:
		k.log.Info("rules installed", "rules", now.Rules, "took", took.String())
	}
	if err != nil {
		k.Recorder.Failed(k.id, err)
		if k.pacer.failures == 0 {
			k.log.Error("repairing rules failed; trying again", "reason", found.State, "error", err)
		}
		return k.pacer.failed(found.Detail)
	}
	k.pacer.failures = 0
	if ok && install {
		return k.Resync
	}
	k.fight.repaired(time.Now())
	if !ok {
		// The repair succeeded, but something undid it before it was read back.
		k.drifted(now, suspect)
		return minRetry
	}
	k.log.Log(context.Background(), k.level(slog.LevelInfo), "rules repaired", "reason", found.State, "took", took.String())
	return k.Resync
}

// settled records the state at the end of the look.
func (k *keeper) settled(r layer.Reading) {
	drifted := r.State.Drifted()
	if !drifted {
		k.pacer.failures = 0
	}
	if k.fight.over(time.Now(), drifted) {
		k.log.Info("the repairs are no longer being undone", "undone", k.fight.undone)
		k.fight = fight{}
	}
	if k.last == layer.Unknown && !drifted {
		k.log.Info("rules can be read again", "state", r.State)
	}
	if !drifted && r.Detail != k.note && k.notes.Allow() {
		k.note = r.Detail
		what := "rules are in force"
		switch {
		case r.NoPath:
			what = "there is nothing to enforce"
		case r.State == layer.Unsupported:
			what = "this node does not support the layer"
		}
		k.log.Info(what, "state", r.State, "detail", r.Detail)
	}
	k.last = r.State
}

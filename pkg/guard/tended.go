// One layer in the loop's care: when to mend it, and what to say of it.
package guard

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

const (
	// Repairs of a state that lets packets through are done at once up to burst, then at this rate, at which two agents
	// that both want the top of the chain cost a few per cent of a core for as long as they fight.
	urgentPerSecond = 5
	urgentBurst     = 100
	// calmPeriod is the pause between repairs of a state in which packets are stopped all the same.
	calmPeriod = 10 * time.Second
	// The pause after a failed repair doubles from minRetry to maxRetry.
	minRetry = 10 * time.Millisecond
	maxRetry = 10 * time.Second
)

// tended is a layer with the memory of what was seen and done.
type tended struct {
	Layer
	*Config
	show  func(LayerStatus)
	shown LayerStatus
	last  enforce.State // as the last look, with its repair, left it; empty before the first

	// The look that is under way.
	found     enforce.Reading
	repaired  bool
	repairErr error
	again     time.Duration

	pacer   pacer
	contest contest
}

func newTended(l Layer, c *Config, show func(LayerStatus)) *tended {
	return &tended{Layer: l, Config: c, show: show, pacer: pacer{
		urgent: rate.NewLimiter(urgentPerSecond, urgentBurst),
		calm:   rate.NewLimiter(rate.Every(calmPeriod), 1),
	}}
}

// rescue puts back what is lost, without a further look.
func (t *tended) rescue() {
	t.repaired, t.repairErr = false, nil
	if t.last != "" && t.Lost() && t.pacer.wait(true) == 0 {
		t.found = enforce.Reading{State: enforce.Missing, Detail: "the kernel has lost at least one of the rules", Blocked: t.shown.Blocked}
		t.display(t.found)
		t.repaired, t.repairErr = true, t.Repair()
	}
}

// look reads the layer, and mends it if need be and allowed, unless it was rescued. The result is read back by settle,
// which must follow.
func (t *tended) look() {
	t.again = t.Resync
	if !t.repaired {
		t.found = t.read()
	}
	if !t.found.State.Drifted() {
		return
	}
	if t.found.State != t.last {
		t.drifted(t.found)
	}
	if t.found.State == enforce.Unknown || t.repaired {
		return
	}
	if wait := t.pacer.wait(!t.found.State.Protects()); wait > 0 {
		t.again = min(t.again, wait)
		return
	}
	t.repaired, t.repairErr = true, t.Repair()
}

// settle ends what look began, and returns when to look again, at the latest.
func (t *tended) settle(noticed time.Time) (again time.Duration) {
	r := t.found
	if t.repaired {
		r = t.read()
		t.again = t.judge(r, noticed)
	}
	if !r.State.Drifted() {
		t.pacer.failures = 0
	}
	if t.contest.over(time.Now(), r.State) {
		t.Log.Info("nobody undoes the repairs any more", "family", t.Family(), "undone", t.contest.undone)
		t.contest = contest{}
	}
	if t.last == enforce.Unknown && !r.State.Drifted() {
		t.Log.Info("rules can be read again", "family", t.Family(), "state", r.State)
	}
	t.last = r.State
	return t.again
}

func (t *tended) read() enforce.Reading {
	r := t.Read()
	if r.Err != nil {
		t.Recorder.Failed(t.Family(), r.Err)
	}
	t.display(r)
	return r
}

// display puts a reading up for everybody, before anything that may take long.
func (t *tended) display(r enforce.Reading) {
	now := time.Now()
	verified := t.shown.Verified
	if r.State.Protects() {
		verified = now
	}
	t.shown = LayerStatus{
		Family: t.Family(), Layer: t.Layer.Layer(), Reading: r, At: now, Verified: verified, Contended: t.contest.on,
	}
	t.show(t.shown)
}

// drifted counts and reports a drift, once for as long as it lasts. That the rules are not there yet when the agent
// starts on a new node is no drift.
func (t *tended) drifted(r enforce.Reading) {
	if t.last == "" && r.State == enforce.Missing {
		return
	}
	t.Recorder.Drift(t.Family(), r.State)
	if t.contest.drifted(time.Now()) {
		t.Log.Warn("somebody keeps undoing the repairs; they go on, at a bounded rate, and are not logged one by one",
			"family", t.Family(), "reason", r.State, "detail", r.Detail, "suspect", t.Suspect())
	}
	level := t.level(slog.LevelWarn)
	if r.State == enforce.Unknown {
		level = slog.LevelWarn // that is no move in a fight, and it stays until somebody looks
	}
	t.Log.Log(context.Background(), level, "rules drifted",
		"family", t.Family(), "reason", r.State, "detail", r.Detail, "suspect", t.Suspect())
}

// level keeps the log quiet while repairs are being undone.
func (t *tended) level(normal slog.Level) slog.Level {
	if t.contest.on {
		return slog.LevelDebug
	}
	return normal
}

// judge says what came of a repair, r being what was read after it, and returns when to look again.
func (t *tended) judge(r enforce.Reading, noticed time.Time) (again time.Duration) {
	took := time.Since(noticed)
	ok := t.repairErr == nil && !r.State.Drifted()
	install := t.last == "" && t.found.State == enforce.Missing
	switch {
	case !install:
		t.Recorder.Repaired(t.Family(), ok, took)
	case ok:
		t.Log.Info("rules installed", "family", t.Family(), "rules", r.Rules, "took", took.String())
	}
	if err := t.repairErr; err != nil {
		t.Recorder.Failed(t.Family(), err)
		if t.pacer.failures == 0 {
			t.Log.Error("repairing rules failed; trying again", "family", t.Family(), "reason", t.found.State, "error", err)
		}
		return t.pacer.failed()
	}
	t.pacer.failures = 0
	if ok && install {
		return t.Resync
	}
	t.contest.repaired(time.Now())
	if !ok {
		// The repair was accepted, and somebody was quicker than the reading.
		t.drifted(r)
		return minRetry
	}
	t.Log.Log(context.Background(), t.level(slog.LevelInfo), "rules repaired",
		"family", t.Family(), "reason", t.found.State, "took", took.String())
	return t.Resync
}

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
	last    enforce.State // as the last look, with its repair, left it; empty before the first
	pacer   pacer
	contest contest
}

func newTended(l Layer, c *Config) *tended {
	return &tended{Layer: l, Config: c, pacer: pacer{
		urgent: rate.NewLimiter(urgentPerSecond, urgentBurst),
		calm:   rate.NewLimiter(rate.Every(calmPeriod), 1),
	}}
}

// tend reads the layer and mends it if need be and allowed. It returns what was read last, and when to look again for a
// repair that had to wait.
func (t *tended) tend(noticed time.Time) (r enforce.Reading, again time.Duration) {
	r = t.read()
	if r.State.Drifted() && r.State != t.last {
		t.drifted(r)
	}
	again = t.Resync
	if r.State.Drifted() && r.State != enforce.Unknown {
		if wait := t.pacer.wait(!r.State.Protects()); wait > 0 {
			again = min(again, wait)
		} else {
			r, again = t.repair(r, noticed)
		}
	}
	if t.contest.over(time.Now(), r.State) {
		t.Recorder.Contended(t.Family(), false)
		t.Log.Info("nobody undoes the repairs any more", "family", t.Family(), "repairs", t.contest.undone)
		t.contest = contest{}
	}
	if t.last != "" && t.last != r.State && t.last == enforce.Unknown && !r.State.Drifted() {
		t.Log.Info("rules can be read again", "family", t.Family(), "state", r.State)
	}
	t.last = r.State
	return r, again
}

func (t *tended) read() enforce.Reading {
	r := t.Read()
	if r.Err != nil {
		t.Recorder.Failed(t.Family(), r.Err)
	}
	t.Recorder.Read(t.Family(), t.Layer.Layer(), r, time.Now())
	return r
}

// drifted counts and reports a drift, once for as long as it lasts. That the rules are not there yet when the agent
// starts on a new node is no drift.
func (t *tended) drifted(r enforce.Reading) {
	if t.last == "" && r.State == enforce.Missing {
		return
	}
	t.Recorder.Drift(t.Family(), r.State)
	if t.contest.drifted(time.Now()) {
		t.Recorder.Contended(t.Family(), true)
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

func (t *tended) repair(before enforce.Reading, noticed time.Time) (r enforce.Reading, again time.Duration) {
	err := t.Repair()
	if err != nil {
		t.Recorder.Failed(t.Family(), err)
	}
	r = t.read()
	ok := err == nil && !r.State.Drifted()
	took := time.Since(noticed)
	first := t.last == "" && before.State == enforce.Missing
	if first && ok {
		t.Log.Info("rules installed", "family", t.Family(), "rules", r.Rules, "took", took.String())
	} else {
		t.Recorder.Repaired(t.Family(), ok, took)
	}
	if err != nil {
		if t.pacer.failures == 0 {
			t.Log.Error("repairing rules failed; trying again", "family", t.Family(), "reason", before.State, "error", err)
		}
		return r, t.pacer.failed()
	}
	t.pacer.failures = 0
	t.contest.repaired(time.Now())
	if !ok {
		// The repair was accepted, and somebody was quicker than the reading.
		t.drifted(r)
		return r, minRetry
	}
	if !first {
		t.Log.Log(context.Background(), t.level(slog.LevelInfo), "rules repaired",
			"family", t.Family(), "reason", before.State, "took", took.String())
	}
	return r, t.Resync
}

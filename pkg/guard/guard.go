// Package guard is the loop: it looks at every layer, mends what differs, and reports what it saw. Everything else in the
// program only wakes it or shows its report.
package guard

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// Layer is one way of keeping pods of one family from the endpoint, which can be read back from the kernel. Layers stand
// beside each other and don't know of each other.
type Layer interface {
	Family() enforce.Family
	// Layer is the name of the way, as a metric label.
	Layer() string
	// Read looks and changes nothing.
	Read() enforce.Reading
	// Repair mends what the last Read found. Whether it did is for the next Read to say.
	Repair() error
}

// Recorder is told what the loop saw. Its methods must not block.
type Recorder interface {
	// Read is called after every look at a layer.
	Read(f enforce.Family, layer string, r enforce.Reading, at time.Time)
	// Drift is called when a look finds a layer in a worse state than the one before left it in.
	Drift(f enforce.Family, s enforce.State)
	// Repaired is called after every attempt, with the time since the drift was noticed.
	Repaired(f enforce.Family, ok bool, took time.Duration)
	// Contended says whether somebody keeps undoing the repairs of a family.
	Contended(f enforce.Family, contended bool)
	// Failed is called with every error that a look or a repair ended in.
	Failed(f enforce.Family, err error)
	// Looked is called after all layers were looked at.
	Looked(s Status)
}

// Status is what one look at all layers found. It is never changed after it was published.
type Status struct {
	// At is when the last of the layers was read.
	At     time.Time
	Layers []LayerStatus
	// Protected: every layer was read back from the kernel as stopping the pods' packets.
	Protected bool
}

// LayerStatus is one layer in a Status.
type LayerStatus struct {
	Family enforce.Family
	Layer  string
	enforce.Reading
}

// Config is what a Guard needs. Every field but Before, After and Suspect must be set.
type Config struct {
	Layers []Layer
	// Resync is the longest time between two looks.
	Resync   time.Duration
	Recorder Recorder
	Log      *slog.Logger
	// Before is called before every look, on the loop's goroutine.
	Before func()
	// After is called after every look, on the loop's goroutine, with what it found.
	After func(Status)
	// Suspect names who may have caused a drift, for the log.
	Suspect func() string
}

// Guard owns the layers. Enforce and Run belong to one goroutine; Wake and Status may be called from any.
type Guard struct {
	Config
	tended []*tended
	wake   chan struct{}
	looks  *rate.Limiter
	status atomic.Pointer[Status]
}

// Looks that were asked for are done at once up to burst, then at this rate: a look costs some milliseconds of forked
// commands, and another agent may write rules a thousand times a second.
const (
	looksPerSecond = 20
	looksBurst     = 50
)

// New makes a guard that has done nothing yet.
func New(c Config) *Guard {
	if c.Before == nil {
		c.Before = func() {}
	}
	if c.After == nil {
		c.After = func(Status) {}
	}
	if c.Suspect == nil {
		c.Suspect = func() string { return "" }
	}
	g := &Guard{Config: c, wake: make(chan struct{}, 1), looks: rate.NewLimiter(looksPerSecond, looksBurst)}
	for _, l := range c.Layers {
		g.tended = append(g.tended, newTended(l, &g.Config))
	}
	return g
}

// Wake asks for a look. It never blocks, and any number of calls before the look are one.
func (g *Guard) Wake() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// Status is what the last look found; the zero Status before the first.
func (g *Guard) Status() Status {
	if s := g.status.Load(); s != nil {
		return *s
	}
	return Status{}
}

// Run looks whenever it is woken, a repair is due, or the resync period is over, until ctx ends. It changes nothing on its
// way out: the rules stay.
func (g *Guard) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-timer.C:
		}
		if g.looks.Wait(ctx) != nil {
			return
		}
		timer.Reset(g.Enforce())
	}
}

// Enforce looks at every layer once, mends what it may, and returns after what time it wants to be called again.
func (g *Guard) Enforce() (again time.Duration) {
	noticed := time.Now()
	g.Before()
	again = g.Resync
	status := Status{Protected: true}
	for _, t := range g.tended {
		r, wait := t.tend(noticed)
		again = min(again, wait)
		status.Layers = append(status.Layers, LayerStatus{t.Family(), t.Layer.Layer(), r})
		status.Protected = status.Protected && r.State.Protects()
	}
	status.Protected = status.Protected && enforcesAny(status.Layers)
	status.At = time.Now()
	g.status.Store(&status)
	g.Recorder.Looked(status)
	g.After(status)
	return again
}

// enforcesAny keeps a node on which nothing is supported from being called protected.
func enforcesAny(layers []LayerStatus) bool {
	for _, l := range layers {
		if l.State != enforce.Unsupported {
			return true
		}
	}
	return false
}

// Package guard is the loop: it looks at every layer, mends what differs, and reports what it saw. Everything else in the
// program only wakes it or shows its report.
package guard

import (
	"context"
	"log/slog"
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
	// Lost asks the kernel, at next to no cost, whether something is missing that the next Repair would put back. It may
	// always say no: a Read will follow.
	Lost() bool
	// Read looks and changes nothing.
	Read() enforce.Reading
	// Repair mends what the last Read found. Whether it did is for the next Read to say.
	Repair() error
}

// Recorder is told of what happens in the loop; what is the case is in Status. Its methods must not block.
type Recorder interface {
	// Drift is called when a look finds a layer in another state than the one before left it in.
	Drift(f enforce.Family, s enforce.State)
	// Repaired is called after every attempt, with the time since the drift was noticed.
	Repaired(f enforce.Family, ok bool, took time.Duration)
	// Failed is called with every error that a look or a repair ended in.
	Failed(f enforce.Family, err error)
}

// Config is what a Guard needs. Every field but First, Before, After and Suspect must be set.
type Config struct {
	Layers []Layer
	// Resync is the longest time between two looks.
	Resync   time.Duration
	Recorder Recorder
	Log      *slog.Logger
	// First is called before anything else is done, on the loop's goroutine: packets may pass meanwhile.
	First func()
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
	board  *board
}

// Looks that were asked for are done at once up to burst, then at this rate: a look costs some milliseconds of forked
// commands, and another agent may write rules a thousand times a second.
const (
	looksPerSecond = 20
	looksBurst     = 50
)

// New makes a guard that has done nothing yet.
func New(c Config) *Guard {
	if c.First == nil {
		c.First = func() {}
	}
	if c.Before == nil {
		c.Before = func() {}
	}
	if c.After == nil {
		c.After = func(Status) {}
	}
	if c.Suspect == nil {
		c.Suspect = func() string { return "" }
	}
	g := &Guard{
		Config: c,
		wake:   make(chan struct{}, 1),
		looks:  rate.NewLimiter(looksPerSecond, looksBurst),
		board:  newBoard(c.Layers, c.Resync),
	}
	for i, l := range c.Layers {
		show := func(s LayerStatus) { g.board.show(i, s) }
		g.tended = append(g.tended, newTended(l, &g.Config, show))
	}
	return g
}

// Status is what is known now. It may be called from any goroutine.
func (g *Guard) Status() Status { return g.board.status(time.Now()) }

// Wake asks for a look. It never blocks, and any number of calls before the look are one.
func (g *Guard) Wake() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
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

// Enforce looks at every layer once, mends what it may, and returns after what time it wants to be called again. What is
// lost is put back before anything else is done, be it a line in the log: packets pass meanwhile.
func (g *Guard) Enforce() (again time.Duration) {
	noticed := time.Now()
	g.First()
	for _, t := range g.tended {
		t.rescue()
	}
	g.Before()
	for _, t := range g.tended {
		t.look()
	}
	again = g.Resync
	for _, t := range g.tended {
		again = min(again, t.settle(noticed))
	}
	g.board.looked(time.Now())
	g.After(g.Status())
	return again
}

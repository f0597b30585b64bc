// The board: what is known of the layers, for everyone to read. A reading proves something only as long as nothing suggests
// that it is out of date, so the board judges its age each time it is asked.

package guard

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/pkg/layer"
)

// LayerStatus is what is known of one layer.
type LayerStatus struct {
	layer.ID
	// Reading is what the last look found, or Unknown if that no longer proves anything.
	layer.Reading
	// At is when the layer was last read, Began when that look began, and Verified when the layer was last found to stop the
	// pods' packets; zero for never.
	At, Began, Verified time.Time
	// Contended: something keeps undoing the repairs.
	Contended bool
}

// String formats the layer, its state, and the reason, for people.
func (l LayerStatus) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s rules are %s: %s", l.ID, l.State, l.Detail), ": ")
}

const (
	// A reading proves something for this many resync periods, and for at least minFresh: a keeper looks once per period unless
	// it hangs.
	freshPeriods = 3
	minFresh     = 3 * time.Second
	// A wake says that something may have changed. If no reading follows within wakeServed, the state is unknown: the keeper
	// hangs, and nobody knows what has changed.
	wakeServed = time.Second
)

// board has a place for each layer.
type board struct {
	fresh  time.Duration
	places []*place
}

func newBoard(resync time.Duration) *board { return &board{fresh: max(minFresh, freshPeriods*resync)} }

func (b *board) add(id layer.ID) *place {
	p := &place{shown: LayerStatus{ID: id}}
	b.places = append(b.places, p)
	return p
}

// status judges all places, together with the evidence.
func (b *board) status(now time.Time, e Evidence) Status {
	var layers []LayerStatus
	for _, p := range b.places {
		layers = append(layers, p.status(now, b.fresh))
	}
	return Judge(layers, e)
}

// place is one layer's place on the board: its keeper writes to it; anyone may ask for looks and read it.
type place struct {
	mu    sync.Mutex
	shown LayerStatus
	// The oldest wake that no look has started to answer, and the oldest that the current look will answer; zero if there is
	// none.
	waiting, current time.Time
}

// asked records a wake.
func (p *place) asked(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting.IsZero() {
		p.waiting = at
	}
}

// answering records that a look begins: what is read from now on answers every wake so far.
func (p *place) answering() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.IsZero() {
		p.current = p.waiting
	}
	p.waiting = time.Time{}
}

// doubt makes the state unknown until the next reading, because the last one may no longer hold.
func (p *place) doubt(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.Reading.Forget(why)
}

// show publishes a reading from a look that lasted from began to at.
func (p *place) show(r layer.Reading, began, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = time.Time{}
	p.shown.Reading, p.shown.Began, p.shown.At = r, began, at
	if r.State.Protects() || r.NoPath {
		p.shown.Verified = at
	}
}

// looked records the end of a look.
func (p *place) looked(contended bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.Contended = contended
}

func (p *place) status(now time.Time, fresh time.Duration) LayerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.shown
	switch age, waited := now.Sub(l.At), p.waited(now); {
	case l.At.IsZero():
		l.State, l.Detail = layer.Unknown, "not checked yet"
	case (l.State.Protects() || l.NoPath) && waited > wakeServed:
		l.Forget(fmt.Sprintf("something may have changed %s ago, and the check of it has not finished yet", waited.Round(time.Second)))
	case age > fresh:
		l.Forget(fmt.Sprintf("the last look was %s ago, so what it found is out of date", age.Round(time.Second)))
	}
	return l
}

// waited returns how long the oldest wake has been without a reading.
func (p *place) waited(now time.Time) time.Duration {
	switch {
	case !p.current.IsZero():
		return now.Sub(p.current)
	case !p.waiting.IsZero():
		return now.Sub(p.waiting)
	}
	return 0
}

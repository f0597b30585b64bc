// The board: what is known of the layers, for everybody to read. A reading proves something only for as long as nothing
// says that it may be out of date; so the board judges each by its age whenever it is asked.

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
	// Reading is what the last look found, or Unknown if that does not prove anything any more.
	layer.Reading
	// At is when the layer was last read, Began when the look began that read it, and Verified when it was last read as stopping
	// the pods' packets; zero if never.
	At, Began, Verified time.Time
	// Contended: something keeps undoing the repairs.
	Contended bool
}

// String is for a person: the layer, its state, and why.
func (l LayerStatus) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s rules are %s: %s", l.ID, l.State, l.Detail), ": ")
}

const (
	// A reading proves something for this many resync periods, and at least for minFresh: a keeper looks once in a period,
	// unless it hangs.
	freshPeriods = 3
	minFresh     = 3 * time.Second
	// A wake says that something may have changed. One that has got no reading after wakeServed makes the state unknown: the
	// keeper hangs, and nobody knows what has changed.
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

// status judges all places, and what else is known.
func (b *board) status(now time.Time, e Evidence) Status {
	var layers []LayerStatus
	for _, p := range b.places {
		layers = append(layers, p.status(now, b.fresh))
	}
	return Judge(layers, e)
}

// place is one layer's: its keeper writes, anybody asks for looks and reads.
type place struct {
	mu    sync.Mutex
	shown LayerStatus
	// The oldest wake that no look has begun to answer, and the oldest that the current look is to answer; zero if none.
	waiting, current time.Time
}

// asked notes a wake.
func (p *place) asked(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting.IsZero() {
		p.waiting = at
	}
}

// answering notes that a look begins: what is read from now on answers every wake so far.
func (p *place) answering() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current.IsZero() {
		p.current = p.waiting
	}
	p.waiting = time.Time{}
}

// doubt shows, until the next reading, that what was read last may not be so any more.
func (p *place) doubt(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shown.Reading.Forget(why)
}

// show puts up a reading, of a look from began to at.
func (p *place) show(r layer.Reading, began, at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.current = time.Time{}
	p.shown.Reading, p.shown.Began, p.shown.At = r, began, at
	if r.State.Protects() || r.NoPath {
		p.shown.Verified = at
	}
}

// looked notes the end of a look.
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

// waited is for how long the oldest wake has got no reading.
func (p *place) waited(now time.Time) time.Duration {
	switch {
	case !p.current.IsZero():
		return now.Sub(p.current)
	case !p.waiting.IsZero():
		return now.Sub(p.waiting)
	}
	return 0
}

// What is known of the layers, for everybody else to read.
package guard

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// Status is what is known of all layers.
type Status struct {
	// At is when the last look at all of them ended; zero before the first.
	At     time.Time
	Layers []LayerStatus
	// Protected: every layer was read back from the kernel as stopping the pods' packets, and not too long ago.
	Protected bool
}

// LayerStatus is what is known of one layer.
type LayerStatus struct {
	Family enforce.Family
	Layer  string
	// Reading is what the last look found, or Unknown if that is too long ago to prove anything.
	enforce.Reading
	// At is when the layer was last read, Verified when it was last read as stopping the pods' packets; zero if never.
	At, Verified time.Time
	// Contended: somebody keeps undoing the repairs.
	Contended bool
}

// String is for a person: the family, its state, and why.
func (l LayerStatus) String() string {
	return strings.TrimSuffix(fmt.Sprintf("%s rules are %s: %s", l.Family, l.State, l.Detail), ": ")
}

// A reading proves something for this many resync periods, and at least for minFresh: the loop looks once in a period,
// unless it hangs.
const (
	freshPeriods = 3
	minFresh     = 3 * time.Second
)

// board shows the newest reading of each layer. The loop writes, anybody reads.
type board struct {
	fresh   time.Duration
	current atomic.Pointer[Status]
}

func newBoard(layers []Layer, resync time.Duration) *board {
	b := &board{fresh: max(minFresh, freshPeriods*resync)}
	s := &Status{}
	for _, l := range layers {
		s.Layers = append(s.Layers, LayerStatus{Family: l.Family(), Layer: l.Layer()})
	}
	b.current.Store(s)
	return b
}

// show puts up a reading at once: a repair that follows may take long.
func (b *board) show(i int, l LayerStatus) {
	next := *b.current.Load()
	next.Layers = slices.Clone(next.Layers)
	next.Layers[i] = l
	b.current.Store(&next)
}

func (b *board) looked(at time.Time) {
	next := *b.current.Load()
	next.At = at
	b.current.Store(&next)
}

// status judges what is up by its age. A node on which nothing is supported is not protected.
func (b *board) status(now time.Time) Status {
	s := *b.current.Load()
	s.Layers = slices.Clone(s.Layers)
	supported := false
	s.Protected = true
	for i := range s.Layers {
		l := &s.Layers[i]
		switch age := now.Sub(l.At); {
		case l.At.IsZero():
			l.State, l.Detail = enforce.Unknown, "nobody has looked yet"
		case age > b.fresh:
			l.State, l.Rules = enforce.Unknown, nil
			l.Detail = fmt.Sprintf("the last look was %s ago, and what it found is out of date", age.Round(time.Second))
		}
		supported = supported || l.State != enforce.Unsupported
		s.Protected = s.Protected && l.State.Protects()
	}
	s.Protected = s.Protected && supported
	return s
}

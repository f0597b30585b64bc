// Repeating the search.

package datapath

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"
)

// pause is the shortest time between two searches: each lists the interfaces of every pod.
const pause = time.Second

// ErrNotSearched is the Err before the first search.
var ErrNotSearched = errors.New("not checked yet")

// Found is the result of the last search.
type Found struct {
	// Ways are the ways past FORWARD for pods' packets, in words.
	Ways []string
	// Err says why there may be others.
	Err error

	at time.Time // when the search ended
}

// Watch searches whenever it is woken, and once in a resync period.
type Watch struct {
	// Resync is the longest time between two searches.
	Resync time.Duration
	// Changed is called, on Run's goroutine, when the result differs from the last one.
	Changed func(before, now Found)

	list  func() (ways []string, err error)
	wake  chan struct{}
	first chan struct{} // closed after the first search
	found atomic.Pointer[Found]
}

// NewWatch makes a watch that has not searched yet.
func NewWatch(resync time.Duration, changed func(before, now Found)) *Watch {
	w := &Watch{Resync: resync, Changed: changed, list: List, wake: make(chan struct{}, 1), first: make(chan struct{})}
	w.found.Store(&Found{Err: ErrNotSearched})
	return w
}

// Found returns what is known. It may be called from any goroutine. A result older than three resync periods (or three pauses,
// if that is longer) does not prove that there is nothing else by now.
func (w *Watch) Found() Found {
	f := *w.found.Load()
	if age := time.Since(f.at); f.Err == nil && age > 3*max(w.Resync, pause) {
		f.Err = fmt.Errorf("the last search was %s ago", age.Round(time.Second))
	}
	return f
}

// Wake asks for a search. It never blocks.
func (w *Watch) Wake() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// First returns after the first search, or after the patience given.
func (w *Watch) First(patience time.Duration) {
	select {
	case <-w.first:
	case <-time.After(patience):
	}
}

// Run searches until ctx ends. It must be called only once.
func (w *Watch) Run(ctx context.Context) {
	resync := time.NewTicker(w.Resync)
	defer resync.Stop()
	w.search()
	close(w.first)
	for ; ctx.Err() == nil; w.search() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-resync.C:
		}
	}
}

func (w *Watch) search() {
	before := *w.found.Load()
	ways, err := w.list()
	now := Found{Ways: ways, Err: err, at: time.Now()}
	if err != nil {
		now.Ways = before.Ways
	}
	w.found.Store(&now)
	if before.Err == ErrNotSearched || !slices.Equal(before.Ways, now.Ways) || (before.Err == nil) != (now.Err == nil) {
		w.Changed(before, now)
	}
}

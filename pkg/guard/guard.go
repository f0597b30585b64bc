// Package guard keeps layers in force. Each layer of each family has its own keeper: one goroutine that looks at the kernel,
// repairs what differs from the policy, reads it back, and puts the result on the board. Nothing that happens to one layer
// delays another. All other parts only wake keepers or read the board.
package guard

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// Layer is one way of keeping pods of one family from the endpoint that can be read back from the kernel. Layers are
// independent and don't know each other. Only one goroutine at a time calls a layer's methods.
type Layer interface {
	ID() layer.ID
	// Look reads what there is and changes nothing. Before anything that may take long, it calls doubt if it already knows that
	// the last finding no longer holds: from then on the state is unknown.
	Look(p policy.Policy, doubt func(why string)) layer.Finding
	// Repair repairs what a Look with the same policy found. Whether that worked is for the next Look to say.
	Repair(p policy.Policy, f layer.Finding) error
}

// Recorder is told about events; the current state is in Status. Its methods must not block, and are called on the goroutine of
// the layer's keeper.
type Recorder interface {
	// Looked is called after every look, including the reading back after a repair.
	Looked(id layer.ID)
	// Drift is called when a look finds a layer in a state other than the one in which the last look left it.
	Drift(id layer.ID, s layer.State)
	// Repaired is called after every repair attempt, with the time since the start of the look that found the drift.
	Repaired(id layer.ID, ok bool, took time.Duration)
	// Failed is called with every error from a look or a repair.
	Failed(id layer.ID, err error)
}

// Config is what a Guard needs. Looked, Suspect and Evidence may be nil.
type Config struct {
	Layers []Layer
	Policy policy.Policy
	// Resync is the longest time between two looks.
	Resync   time.Duration
	Recorder Recorder
	Log      *slog.Logger
	// Looked is called after every look, on the goroutine of the layer's keeper. It must not block.
	Looked func()
	// Suspect names who may have caused a layer's drift, for the log. It is called when a look begins.
	Suspect func(layer.ID) string
	// Evidence returns what else is known; it is called whenever the status is asked for. It must not block.
	Evidence func() Evidence
}

// Guard keeps layers. Its methods may be called from any goroutine.
type Guard struct {
	keepers  []*keeper
	board    *board
	evidence func() Evidence
	policy   atomic.Pointer[policy.Policy]
	first    sync.WaitGroup // keepers whose first look is not over
}

// New makes a guard that has done nothing yet.
func New(c Config) *Guard {
	if c.Looked == nil {
		c.Looked = func() {}
	}
	if c.Suspect == nil {
		c.Suspect = func(layer.ID) string { return "" }
	}
	if c.Evidence == nil {
		c.Evidence = func() Evidence { return Evidence{} }
	}
	g := &Guard{board: newBoard(c.Resync), evidence: c.Evidence}
	g.policy.Store(&c.Policy)
	for _, l := range c.Layers {
		g.keepers = append(g.keepers, newKeeper(l, &c, g.policy.Load, g.board.add(l.ID())))
	}
	g.first.Add(len(g.keepers))
	return g
}

// Status returns what is known now.
func (g *Guard) Status() Status { return g.board.status(time.Now(), g.evidence()) }

// Wake asks the keepers of the given layers for a look, or all keepers if none is given. It never blocks, and any number of
// calls before the look count as one. A keeper that is not affected by a change should not be woken: it would compete for the
// processor, and for legacy's lock, with one that may have something to repair.
func (g *Guard) Wake(layers ...layer.ID) {
	for _, k := range g.keepers {
		if len(layers) == 0 || slices.Contains(layers, k.id) {
			k.Wake()
		}
	}
}

// SetPolicy replaces the policy to enforce, effective from each layer's next look, which it requests.
func (g *Guard) SetPolicy(p policy.Policy) {
	g.policy.Store(&p)
	g.Wake()
}

// Run keeps all layers until ctx ends. It changes nothing when it returns: what is in force stays. It must be called only once.
func (g *Guard) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, k := range g.keepers {
		wg.Go(func() { k.run(ctx, g.first.Done) })
	}
	wg.Wait()
}

// First returns after every layer's first look and its repair, or after the given patience: a layer that hangs must not delay
// watching the others for longer.
func (g *Guard) First(patience time.Duration) {
	done := make(chan struct{})
	go func() {
		g.first.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(patience):
	}
}

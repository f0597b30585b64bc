// Package guard keeps layers in force. Each layer of each family has a keeper of its own: one goroutine that looks at the
// kernel, repairs what differs from the policy, reads back, and puts what it saw on the board. Nothing that happens to one
// layer delays another. Everybody else only wakes keepers, or reads the board.
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

// Layer is one way of keeping pods of one family from the endpoint, which can be read back from the kernel. Layers stand
// beside each other and don't know of each other. One goroutine at a time calls a layer's methods.
type Layer interface {
	ID() layer.ID
	// Look reads what there is, and changes nothing. What may take long is preceded by a call of doubt, if it is known by
	// then that the last finding does not hold any more: from that moment on the state is unknown.
	Look(p policy.Policy, doubt func(why string)) layer.Finding
	// Repair mends what a Look by the same policy found. Whether it did is for the next Look to say.
	Repair(p policy.Policy, f layer.Finding) error
}

// Recorder is told of what happens; what is the case is in Status. Its methods must not block, and are called from the
// goroutine of the layer's keeper.
type Recorder interface {
	// Looked is called after every look, and after every reading back of a repair.
	Looked(id layer.ID)
	// Drift is called when a look finds a layer in another state than the one before left it in.
	Drift(id layer.ID, s layer.State)
	// Repaired is called after every attempt, with the time since the look began that found the drift.
	Repaired(id layer.ID, ok bool, took time.Duration)
	// Failed is called with every error that a look or a repair ended in.
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
	// Looked is called after every look, from the goroutine of the layer's keeper. It must not block.
	Looked func()
	// Suspect names who may have caused a drift of a layer, for the log. It is asked when a look begins.
	Suspect func(layer.ID) string
	// Evidence tells what else is known, whenever the status is asked for. It must not block.
	Evidence func() Evidence
}

// Guard keeps layers. Its methods may be called from any goroutine.
type Guard struct {
	keepers  []*keeper
	board    *board
	evidence func() Evidence
	policy   atomic.Pointer[policy.Policy]
	first    sync.WaitGroup // the keepers that have not looked yet
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

// Status is what is known now.
func (g *Guard) Status() Status { return g.board.status(time.Now(), g.evidence()) }

// Wake asks the keepers of the given layers for a look, of all if none is given. It never blocks, and any number of calls
// before the look are one. A keeper that has nothing to do with what has changed had better sleep: it would compete for the
// processor, and for legacy's lock, with the one that may have something to repair.
func (g *Guard) Wake(layers ...layer.ID) {
	for _, k := range g.keepers {
		if len(layers) == 0 || slices.Contains(layers, k.id) {
			k.Wake()
		}
	}
}

// SetPolicy makes another policy the one to enforce, from each layer's next look on, which it asks for.
func (g *Guard) SetPolicy(p policy.Policy) {
	g.policy.Store(&p)
	g.Wake()
}

// Run keeps all layers until ctx ends. It changes nothing on its way out: what is in force stays. To be called once.
func (g *Guard) Run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, k := range g.keepers {
		wg.Go(func() { k.run(ctx, g.first.Done) })
	}
	wg.Wait()
}

// First returns after every layer's first look, with its repair, or after the patience given: a layer that hangs must hold
// up the watching of the others no longer.
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

// What was stopped, less what we sent ourselves.

package agent

import (
	"sync"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// ownPackets keeps probes out of the count of what pods sent. A nil one keeps nothing. It may be used from any goroutine.
type ownPackets struct {
	mu    sync.Mutex
	sent  map[layer.ID]uint64
	shown map[layer.ID]uint64
}

func newOwnPackets() *ownPackets {
	return &ownPackets{sent: map[layer.ID]uint64{}, shown: map[layer.ID]uint64{}}
}

// expect notes that each of the layers will count n, and missed that it did not.
func (o *ownPackets) expect(layers []guard.LayerStatus, n uint64) { o.add(layers, n) }
func (o *ownPackets) missed(layers []guard.LayerStatus, n uint64) { o.add(layers, -n) }

func (o *ownPackets) add(layers []guard.LayerStatus, n uint64) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range layers {
		o.sent[l.ID] += n
	}
}

// others is what of a count others sent. It never goes back, whenever a packet of ours gets into the count.
func (o *ownPackets) others(id layer.ID, counted uint64) uint64 {
	if o == nil {
		return counted
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if own := o.sent[id]; counted > own {
		o.shown[id] = max(o.shown[id], counted-own)
	}
	return o.shown[id]
}

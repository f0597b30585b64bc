// The count of stopped packets, without the agent's own probes.

package agent

import (
	"sync"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// ownPackets keeps probes out of the count of pods' packets. A nil one does nothing. It may be used from any goroutine.
type ownPackets struct {
	mu    sync.Mutex
	sent  map[layer.ID]uint64
	shown map[layer.ID]uint64
}

func newOwnPackets() *ownPackets {
	return &ownPackets{sent: map[layer.ID]uint64{}, shown: map[layer.ID]uint64{}}
}

// expect notes that each of the layers will count n packets of ours, and missed that it did not.
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

// others returns the part of a count that others sent. It never decreases, whenever one of our packets gets counted.
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

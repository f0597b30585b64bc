// Watching the interfaces.

package ifwatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/imds-guard/imds-guard/pkg/subscription"
)

const (
	// linkBuffer is the receive buffer in bytes. A reader that stalls for 20 ms while 1,000 pods are created loses most events
	// with the default (208 KiB) and none with this; memory is used only while messages wait.
	linkBuffer = 8 << 20
	// listPause is the shortest time between two listings: under a storm of events one listing serves for many.
	listPause = 50 * time.Millisecond
)

// Recorder is told about changes of the interfaces. Its methods must not block.
type Recorder interface {
	// Added and Removed are called with how many pod-side interfaces came and went.
	Added(n int)
	Removed(n int)
	// Resynced is called for every listing that no event asked for: the first, the periodic ones, and those after a
	// loss of events.
	Resynced()
}

// Watch keeps a picture of the pod-side interfaces up to date. Events only trigger a listing; their contents are not used.
type Watch struct {
	// Resync is the longest time between two listings.
	Resync   time.Duration
	Recorder Recorder
	// Wake is called when a pod-side interface or a tunnel has appeared or disappeared.
	Wake func()
	// Lost is called when events were lost, or the interfaces could not be listed.
	Lost func(error)

	picture atomic.Pointer[Picture]
}

// ErrNotListed is the Err of the picture before the first listing.
var ErrNotListed = errors.New("the interfaces have not been listed yet")

// Picture returns the current picture. It may be called from any goroutine.
func (w *Watch) Picture() Picture {
	if p := w.picture.Load(); p != nil {
		return *p
	}
	return Picture{Err: ErrNotListed}
}

// Run watches until ctx ends. It subscribes first and then lists, so that no change is missed in between. It subscribes again
// whenever the subscription breaks: vishvananda/netlink closes its channel on any receive error.
func (w *Watch) Run(ctx context.Context) { subscription.Keep(ctx, w.follow, w.Lost) }

func (w *Watch) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan netlink.LinkUpdate, 64)
	failed := make(chan error, 1)
	err := netlink.LinkSubscribeWithOptions(events, ctx.Done(), netlink.LinkSubscribeOptions{
		ReceiveBufferSize:      linkBuffer,
		ReceiveBufferForceSize: true,
		ErrorCallback: func(err error) {
			select {
			case failed <- err:
			default:
			}
		},
	})
	if err != nil {
		w.resync() // so that the picture grows no older than the pause before the next attempt
		return fmt.Errorf("subscribing to interfaces: %w", err)
	}
	dirty := make(chan struct{}, 1)
	broken := make(chan struct{})
	go func() {
		defer close(broken)
		for range events {
			select {
			case dirty <- struct{}{}:
			default:
			}
		}
	}()
	resync := time.NewTicker(w.Resync)
	defer resync.Stop()
	w.resync()
	for {
		select {
		case <-broken:
			return receiveError(failed)
		case <-resync.C:
			w.resync()
		case <-dirty:
			w.list()
			select {
			case <-broken:
				return receiveError(failed)
			case <-time.After(listPause):
			}
		}
	}
}

// receiveError returns what broke the subscription.
func receiveError(failed <-chan error) error {
	select {
	case err := <-failed:
		return fmt.Errorf("receiving interface events: %w", err)
	default:
		return errors.New("receiving interface events: the subscription ended")
	}
}

func (w *Watch) resync() {
	w.Recorder.Resynced()
	w.list()
}

// list makes a new picture and reports what has changed.
func (w *Watch) list() {
	old := w.Picture()
	found, err := List()
	if err != nil {
		w.picture.Store(&Picture{old.Interfaces, old.Tunnels, err})
		if old.Err == nil || errors.Is(old.Err, ErrNotListed) {
			w.Lost(err) // once, until it works again
		}
		return
	}
	w.picture.Store(&found)
	added, removed := missingFrom(found.Interfaces, old.Interfaces), missingFrom(old.Interfaces, found.Interfaces)
	w.Recorder.Added(added)
	w.Recorder.Removed(removed)
	tunnels := missingFrom(found.Tunnels, old.Tunnels) + missingFrom(old.Tunnels, found.Tunnels)
	if added+removed+tunnels > 0 || old.Err != nil {
		w.Wake()
	}
}

// missingFrom counts the interfaces of a that are not in b.
func missingFrom(a, b []Interface) (n int) {
	for _, i := range a {
		if !slices.Contains(b, i) {
			n++
		}
	}
	return n
}

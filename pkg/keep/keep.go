// Package keep keeps a subscription going that the kernel, or the library, may end at any time.
package keep

import (
	"context"
	"time"
)

// The pause before subscribing again doubles from minPause to maxPause, and starts over after a subscription that lasted:
// one that breaks at once, for ever, must burn neither the node nor the log.
const (
	minPause = 100 * time.Millisecond
	maxPause = 30 * time.Second
	lasted   = time.Minute
)

// Following calls follow again whenever it returns, until ctx ends, and tells lost with what error it did.
func Following(ctx context.Context, follow func(context.Context) error, lost func(error)) {
	pause := minPause
	for {
		start := time.Now()
		err := follow(ctx)
		if ctx.Err() != nil {
			return
		}
		lost(err)
		if time.Since(start) > lasted {
			pause = minPause
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

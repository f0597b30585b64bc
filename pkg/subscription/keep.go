// Package subscription keeps up a subscription that the kernel, or the library, may end at any time.
package subscription

import (
	"context"
	"time"
)

// The pause before subscribing again doubles from minPause to maxPause, and is reset after a subscription that lasted: one that
// keeps breaking at once must not waste CPU time or flood the log.
const (
	minPause = 100 * time.Millisecond
	maxPause = 30 * time.Second
	lasting  = time.Minute
)

// Keep calls follow, and calls it again whenever it returns, until ctx ends. Each time it calls lost with the error that follow
// returned.
func Keep(ctx context.Context, follow func(context.Context) error, lost func(error)) {
	pause := minPause
	for {
		start := time.Now()
		err := follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) >= lasting {
			pause = minPause
		}
		lost(err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

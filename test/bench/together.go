//go:build linux

// Doing several things at the same time.

package main

import (
	"context"
	"sync"
)

// together calls f for 0 to n-1 at the same time and waits for all. The first error, which is returned, ends the others'
// contexts.
func together(ctx context.Context, n int, f func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

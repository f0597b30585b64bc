package subscription

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// keep runs Keep, in fake time, with subscriptions that break after each of the given times. It returns the pauses after
// them.
func keep(t *testing.T, lives ...time.Duration) (pauses []time.Duration) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	broken := errors.New("broken")
	var ended time.Time
	calls, losses := 0, 0
	Keep(ctx, func(context.Context) error {
		if calls > 0 {
			pauses = append(pauses, time.Since(ended))
		}
		if calls == len(lives) {
			cancel()
			return ctx.Err()
		}
		time.Sleep(lives[calls])
		calls++
		ended = time.Now()
		return broken
	}, func(err error) {
		losses++
		if err != broken {
			t.Errorf("lost(%v)", err)
		}
	})
	if losses != len(lives) {
		t.Errorf("lost was called %d times for %d subscriptions that broke", losses, len(lives))
	}
	return pauses
}

// Subscriptions that break at once are tried ever less often, down to twice a minute.
func TestPauseDoubles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := time.Millisecond
		want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3200 * ms, 6400 * ms, 12800 * ms, 25600 * ms,
			30 * time.Second, 30 * time.Second}
		if got := keep(t, make([]time.Duration, len(want))...); !slices.Equal(got, want) {
			t.Errorf("the pauses are %s, want %s", got, want)
		}
	})
}

// After one that lasted the next is tried soon; after one that only nearly did, not.
func TestPauseStartsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := time.Millisecond
		got := keep(t, 0, 0, lasting-1, lasting, 0, 0)
		if want := []time.Duration{100 * ms, 200 * ms, 400 * ms, 100 * ms, 200 * ms, 400 * ms}; !slices.Equal(got, want) {
			t.Errorf("the pauses are %s, want %s", got, want)
		}
	})
}

// The end of the context ends a pause at once, and a subscription that ends because of it is not a loss.
func TestKeepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		start, losses := time.Now(), 0
		Keep(ctx, func(context.Context) error { return errors.New("broken") }, func(error) {
			if losses++; losses == 3 {
				cancel()
			}
		})
		if losses != 3 || time.Since(start) != 300*time.Millisecond {
			t.Errorf("%d losses; it ended after %s", losses, time.Since(start))
		}
		ctx, cancel = context.WithCancel(t.Context())
		Keep(ctx, func(context.Context) error {
			cancel()
			return ctx.Err()
		}, func(err error) { t.Errorf("lost(%v)", err) })
	})
}

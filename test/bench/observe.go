//go:build linux

// The observer: it sees by itself when a rule is gone and when it is back, and is told nothing by the guard.

package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/route"
)

const (
	// pollPause is the observer's pause between two questions. The kernel's timer slack makes it about twice as long.
	pollPause = 50 * time.Microsecond
	// slowPollPause is for absences of seconds, of which many are observed at once.
	slowPollPause = 20 * time.Millisecond
)

// watchAbsence polls until the count has been below present, and returns for how long: from when the last question that
// found the rule was asked to when the first that found it again was answered. So that is never too short, and too long by
// one pause at most.
//
// An absence that fell between two questions counts as long as the longest time between any two. That there was one is
// known when tampered is closed. ready is closed after the first question.
func watchAbsence(
	ctx context.Context, c counter, present int, pause time.Duration, ready chan<- struct{}, tampered <-chan struct{},
) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	first := sync.OnceFunc(func() { close(ready) })
	defer first()
	sleep := unix.NsecToTimespec(pause.Nanoseconds())
	var longest time.Duration
	gone, found := false, time.Now()
	for {
		over := isClosed(tampered)
		asked := time.Now()
		n, err := c.Count()
		distance := time.Since(found)
		switch {
		case err != nil:
			return 0, err
		case ctx.Err() != nil:
			return 0, fmt.Errorf("waiting for the rule to be there again: %w", ctx.Err())
		case n < present:
			gone = true
		case gone:
			return distance, nil
		case over:
			return max(distance, longest), nil
		default:
			longest, found = max(distance, longest), asked
		}
		first()
		// Not time.Sleep, which rounds up to a millisecond when the program has nothing else to do.
		_ = unix.Nanosleep(&sleep, nil)
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// observeTampering watches while tamper removes the rule, until it is back.
func observeTampering(ctx context.Context, c counter, present int, pause, longest time.Duration, tamper func() error) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	ready, tampered := make(chan struct{}), make(chan struct{})
	var absence time.Duration
	var watching error
	seen := make(chan struct{})
	go func() {
		defer close(seen)
		absence, watching = watchAbsence(ctx, c, present, pause, ready, tampered)
	}()
	<-ready
	if err := tamper(); err != nil {
		cancel()
		<-seen
		return 0, fmt.Errorf("tampering: %w", err)
	}
	close(tampered)
	<-seen
	return absence, watching
}

// countAll counts once for every layer of each family.
func (n *node) countAll() (counts []int, err error) {
	err = n.withCounters(func(counters []counter) error {
		for _, c := range counters {
			count, err := c.Count()
			if err != nil {
				return err
			}
			counts = append(counts, count)
		}
		return nil
	})
	return counts, err
}

// waitStarted polls until there is more of every layer of each family than absent says, and returns when that was seen.
func (n *node) waitStarted(ctx context.Context, absent []int) (seen time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = n.withCounters(func(counters []counter) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		sleep := unix.NsecToTimespec(pollPause.Nanoseconds())
		for i, c := range counters {
			for {
				count, err := c.Count()
				if err != nil {
					return err
				}
				if count > absent[i] {
					break
				}
				if ctx.Err() != nil {
					return fmt.Errorf("waiting for layer %d of %s: %w", i, n.layers, ctx.Err())
				}
				_ = unix.Nanosleep(&sleep, nil)
			}
		}
		seen = time.Now()
		return nil
	})
	return seen, err
}

// withCounters calls f with a counter for every layer of each family.
func (n *node) withCounters(f func([]counter) error) (err error) {
	var counters []counter
	defer func() {
		for _, c := range counters {
			err = errors.Join(err, c.Close())
		}
	}()
	for _, family := range imds.Families {
		for _, layer := range n.layers {
			var c counter
			switch layer {
			case route.LayerName:
				c, err = newPieceCounter(n, family)
			case cgroup.LayerName:
				c, err = newHookCounter(n)
			default:
				c, err = newCounter(n, family)
			}
			if err != nil {
				return err
			}
			counters = append(counters, c)
		}
	}
	return f(counters)
}

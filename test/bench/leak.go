//go:build linux

// What a pod gets through while somebody flushes the chain again and again.

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

const (
	attackers = 4
	// Each attacker makes an attempt every attackPeriod and gives up on it after connectTimeout.
	attackPeriod   = 4 * time.Millisecond
	connectTimeout = 3 * time.Millisecond
)

func measureLeak(ctx context.Context, b *bench) (result, error) {
	r := result{how: fmt.Sprintf("%d attackers in a pod each open a connection to the endpoint every %s, give up after "+
		"%s, and make one HTTP request on each that is established: 1,000 attempts a second, if the machine can do that. "+
		"Meanwhile `iptables -F FORWARD` is run as above. The stand-in for the endpoint counts the requests; "+
		"a check beforehand shows that it can be reached without the guard.", attackers, attackPeriod, connectTimeout)}
	for _, backend := range backends {
		for _, layers := range [][]string{iptablesAlone, bothLayers} {
			row, err := leak(ctx, b, backend, layers)
			if err != nil {
				return result{}, fmt.Errorf("%s, %s: %w", backend, layers, err)
			}
			r.rows = append(r.rows, row)
			b.log.Printf("leak: %s: %s", row.what, row.result)
		}
	}
	return r, nil
}

func leak(ctx context.Context, b *bench, backend rules.Backend, layers []string) (r row, err error) {
	err = withNode(ctx, backend, func(n *node) error {
		n.layers = layers
		s := startStream(n.pod)
		defer s.stop()
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
		control := n.IMDS().Requests()
		if control == 0 {
			return errors.New("checking the stream: without a guard no request reached the endpoint")
		}
		return b.withAgent(ctx, n, func(*agent) error {
			before, began, attempted := n.IMDS().Requests(), time.Now(), s.attempts.Load()
			reached := before
			var perFlush []int64
			absences, err := n.tamper(ctx, imds.IPv4, b.sizes.flushes, func() error {
				now := n.IMDS().Requests() // a request that is under way falls to the next flush
				perFlush = append(perFlush, now-reached)
				reached = now
				return nil
			})
			if err != nil {
				return err
			}
			rate := float64(s.attempts.Load()-attempted) / time.Since(began).Seconds()
			s.stop()
			if err := s.err(); err != nil {
				return err
			}
			total, with := n.IMDS().Requests()-before, 0
			for _, requests := range perFlush {
				if requests > 0 {
					with++
				}
			}
			r = row{
				what: fmt.Sprintf("%s, %s, %d flushes", backend, layerWords(layers), b.sizes.flushes),
				result: fmt.Sprintf("%d requests, in %d of the flushes, at most %d in one (%.0f attempts/s; "+
					"%d requests/s without a rule); rule gone for %s (median)",
					total, with, quantile(perFlush, 1), rate, control, milliseconds(median(absences))),
			}
			if len(layers) > 1 {
				r.goal, r.met = "0 requests", verdict(total == 0)
			}
			return nil
		})
	})
	return r, err
}

// layerWords are layers for a person.
func layerWords(layers []string) string {
	if len(layers) == 1 {
		return layers[0] + " alone"
	}
	return strings.Join(layers, " and ")
}

// stream is the attackers at work.
type stream struct {
	quit     atomic.Bool
	working  sync.WaitGroup
	attempts atomic.Int64
	mu       sync.Mutex
	failed   error
}

func startStream(pod *testnode.Pod) *stream {
	s := &stream{}
	for i := range attackers {
		s.working.Go(func() {
			err := pod.Do(func() error { return s.attack(time.Duration(i) * attackPeriod / attackers) })
			s.mu.Lock()
			defer s.mu.Unlock()
			s.failed = errors.Join(s.failed, err)
		})
	}
	return s
}

// stop ends the stream; doing it again does nothing.
func (s *stream) stop() {
	s.quit.Store(true)
	s.working.Wait()
}

func (s *stream) err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// attack makes attempts from the calling thread's namespace.
func (s *stream) attack(offset time.Duration) error {
	dialer := net.Dialer{Timeout: connectTimeout}
	next := time.Now().Add(offset)
	for !s.quit.Load() {
		if pause := time.Until(next); pause > 0 {
			sleep := unix.NsecToTimespec(pause.Nanoseconds())
			_ = unix.Nanosleep(&sleep, nil)
		} else {
			next = time.Now() // late: attempts are not made up for
		}
		next = next.Add(attackPeriod)
		s.attempts.Add(1)
		conn, err := dialer.Dial("tcp", net.JoinHostPort(testnode.IMDSv4, "80"))
		var timeout net.Error
		switch {
		case err == nil:
			steal(conn)
		case !errors.As(err, &timeout) || !timeout.Timeout():
			return fmt.Errorf("attacking: %w", err)
		}
	}
	return nil
}

// steal makes a request. Whether it reaches the endpoint, which may be cut off again, is for the endpoint to count.
func steal(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Millisecond))
	if _, err := io.WriteString(conn, "GET /latest/meta-data/iam/security-credentials/ HTTP/1.0\r\n\r\n"); err == nil {
		_, _ = io.Copy(io.Discard, conn)
	}
}

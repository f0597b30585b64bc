//go:build linux

// What the guard costs the traffic that it does not block.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

const datapathPort = 7

func measureDatapath(ctx context.Context, b *bench) (result, error) {
	r := result{how: fmt.Sprintf("A pod connects to a server elsewhere and disconnects, one connection after the other, for "+
		"%s with the agent and its layers and for %s without either (stopped and cleaned up; FORWARD itself stays registered, as "+
		"on any node where others use it). There are %d such pairs in alternating order; the result is the median of their ratios.",
		b.sizes.pairHalf, b.sizes.pairHalf, b.sizes.pairs)}
	for _, c := range []struct {
		backend rules.Backend
		layers  []string
	}{{rules.NFT, iptablesAlone}, {rules.Legacy, iptablesAlone}, {rules.NFT, routeAlone}, {rules.NFT, bothLayers}} {
		row, err := datapath(ctx, b, c.backend, c.layers)
		if err != nil {
			return result{}, fmt.Errorf("%s, %s: %w", c.backend, c.layers, err)
		}
		r.rows = append(r.rows, row)
		b.log.Printf("datapath: %s: %s", row.what, row.result)
	}
	return r, nil
}

func datapath(ctx context.Context, b *bench, backend rules.Backend, layers []string) (r row, err error) {
	err = withNode(ctx, backend, func(n *node) (err error) {
		n.layers = layers
		server := netip.AddrPortFrom(netip.MustParseAddr(testnode.Elsewhere4), datapathPort)
		l, err := n.Outside().Listen("tcp", server.String())
		if err != nil {
			return err
		}
		defer l.Close()
		go acceptAll(l)

		with := func() (rate float64, err error) {
			err = b.withAgent(ctx, n, func(*agent) (err error) {
				rate, err = connectRate(n.pod, server, b.sizes.pairHalf)
				return err
			})
			return rate, errors.Join(err, b.cleanup(ctx, n))
		}
		without := func() (float64, error) {
			if err := wait(ctx, 500*time.Millisecond); err != nil {
				return 0, err
			}
			return connectRate(n.pod, server, b.sizes.pairHalf)
		}
		if _, err := with(); err != nil { // registers FORWARD, and warms up
			return err
		}
		var ratios, rates []float64
		for i := range b.sizes.pairs {
			var on, off float64
			if i%2 == 0 {
				if off, err = without(); err == nil {
					on, err = with()
				}
			} else if on, err = with(); err == nil {
				off, err = without()
			}
			if err != nil {
				return err
			}
			ratios, rates = append(ratios, on/off), append(rates, off)
		}
		r = row{
			what: fmt.Sprintf("%s, %s: connections/s with the guard ÷ without", backend, layerWords(layers)),
			result: fmt.Sprintf("%.3f (pairs from %.3f to %.3f); %.0f/s without",
				median(ratios), quantile(ratios, 0), quantile(ratios, 1), median(rates)),
		}
		return nil
	})
	return r, err
}

func acceptAll(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conn.Close()
	}
}

// connectRate makes connections from the pod, one after the other, and returns how many per second.
func connectRate(pod *testnode.Pod, server netip.AddrPort, d time.Duration) (rate float64, err error) {
	err = pod.Do(func() error {
		address := &unix.SockaddrInet4{Addr: server.Addr().As4(), Port: int(server.Port())}
		began, n := time.Now(), 0
		for time.Since(began) < d {
			if err := connectOnce(address); err != nil {
				return fmt.Errorf("connecting to %s: %w", server, err)
			}
			n++
		}
		rate = float64(n) / time.Since(began).Seconds()
		return nil
	})
	return rate, err
}

// connectOnce connects and resets the connection, so that no port stays occupied.
func connectOnce(address unix.Sockaddr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}); err != nil {
		return err
	}
	for {
		switch err := unix.Connect(fd, address); err {
		case nil, unix.EISCONN:
			return nil
		case unix.EINTR, unix.EALREADY: // a signal of the Go runtime; the connection goes on being made
		default:
			return err
		}
	}
}

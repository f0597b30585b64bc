//go:build linux

// What the layer of sockets costs the calls of pods, and how soon it is in force.

package main

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func measureSockets(ctx context.Context, b *bench) (result, error) {
	r := result{how: fmt.Sprintf("A process in a pod's cgroup and network namespace connects a UDP socket, or sends an empty datagram from one, "+
		"%d times in a row, with the agent's layers in force and without (stopped and cleaned up). There are %d such pairs in alternating "+
		"order; the result is the median of their differences. A connect sends no packet. With the layers, calls to the endpoint "+
		"are refused; without them, datagrams reach the stand-in for the endpoint.", testnode.TimedCalls, b.sizes.pairs)}
	elsewhere := netip.AddrPortFrom(netip.MustParseAddr(testnode.Elsewhere4), datapathPort).String()
	err := withNode(ctx, rules.NFT, func(n *node) error {
		for _, c := range []struct{ what, call string }{
			{"connect, elsewhere", "timed-connect " + elsewhere},
			{"connect, the endpoint", "timed-connect " + imds.IPv4.Endpoint().Addr().String() + ":80"},
			{"datagram, elsewhere", "timed-send " + elsewhere},
			{"datagram, the endpoint", "timed-send " + imds.IPv4.Endpoint().Addr().String() + ":80"},
		} {
			row, err := costOfCalls(ctx, b, n, c.what, c.call)
			if err != nil {
				return fmt.Errorf("%s: %w", c.what, err)
			}
			r.rows = append(r.rows, row)
			b.log.Printf("sockets: %s: %s", row.what, row.result)
		}
		return nil
	})
	return r, err
}

// costOfCalls times calls in pairs, with the layers and without.
func costOfCalls(ctx context.Context, b *bench, n *node, what, call string) (row, error) {
	timed := func() (time.Duration, error) {
		results, err := n.SocketCalls(n.pod.Namespace, call)
		if err != nil {
			return 0, err
		}
		took, err := strconv.Atoi(strings.TrimSuffix(results[0], "ns"))
		return time.Duration(took), err
	}
	var on, off, differences []time.Duration
	for i := range b.sizes.pairs {
		var with, without time.Duration
		measure := []func() error{
			func() (err error) { without, err = timed(); return err },
			func() error {
				if err := b.withAgent(ctx, n, func(*agent) (err error) { with, err = timed(); return err }); err != nil {
					return err
				}
				return b.cleanup(ctx, n)
			},
		}
		for j := range measure {
			if err := measure[(i+j)%len(measure)](); err != nil {
				return row{}, err
			}
		}
		on, off, differences = append(on, with), append(off, without), append(differences, with-without)
	}
	return row{
		what: "nft, all layers: " + what,
		result: fmt.Sprintf("%d ns per call, %d ns without: %+d ns (pairs from %+d to %+d)", median(on), median(off), median(differences),
			quantile(differences, 0), quantile(differences, 1)),
	}, nil
}

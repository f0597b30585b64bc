//go:build linux

// The pieces of the route layer: when they are all there, and how long one is away.

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// The layer's names, as `imds-guard rules` prints them.
const routeTable = 169254

func sinkName(f imds.Family) string { return "imds-guard" + version(f) }

// version is the family as `ip` has it.
func version(f imds.Family) string {
	if f == imds.IPv6 {
		return "6"
	}
	return "4"
}

// pieceCounter counts whole layers: one, or none if a piece is missing.
type pieceCounter struct {
	handle *netlink.Handle
	family int
	sink   string
}

func newPieceCounter(n *node, f imds.Family) (c pieceCounter, err error) {
	c = pieceCounter{family: netlink.FAMILY_V4, sink: sinkName(f)}
	if f == imds.IPv6 {
		c.family = netlink.FAMILY_V6
	}
	err = n.Host().Do(func() (err error) {
		c.handle, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return c, err
}

// Count implements counter.
func (c pieceCounter) Count() (int, error) {
	list, err := c.handle.RuleListFiltered(c.family, &netlink.Rule{Table: routeTable}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) || len(list) == 0 {
		return 0, err
	}
	routes, err := c.handle.RouteListFiltered(c.family, &netlink.Route{Table: routeTable}, netlink.RT_FILTER_TABLE)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) || len(routes) < 2 {
		return 0, err
	}
	l, err := c.handle.LinkByName(c.sink)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return 0, nil
	}
	if err != nil || l.Attrs().Flags&net.FlagUp == 0 {
		return 0, err
	}
	return 1, nil
}

// Close implements counter.
func (c pieceCounter) Close() error {
	c.handle.Close()
	return nil
}

// losses are the pieces and how each is lost, with %[1]s for 4 or 6, %[2]s for the endpoint and %[3]s for the sink.
var losses = []struct{ what, how string }{
	{"the policy rule", "ip -%[1]s rule del pref 0 not iif lo lookup 169254"},
	{"the blackhole route", "ip -%[1]s route del blackhole %[2]s table 169254 metric 1000"},
	{"the route into the sink", "ip -%[1]s route del %[2]s dev %[3]s table 169254"},
	{"both routes, by `ip route flush`", "ip -%[1]s route flush table 169254"},
	{"the sink, with its route", "ip link del %[3]s"},
}

const pieceGoal = 40 * time.Millisecond

func measurePieces(ctx context.Context, b *bench) (result, error) {
	r := result{how: fmt.Sprintf("A separate observer lists the policy rules, the routes of the layer's table and the sink, in a "+
		"loop with a pause of about %s, while one piece is deleted by `ip` every %s plus up to %s. The time is measured as above, "+
		"until all pieces are back: while one is gone, the others may stop packets.", 2*pollPause, tamperPause, tamperJitter)}
	for _, f := range imds.Families {
		for _, loss := range losses {
			absences, err := pieceAbsences(ctx, b, f, fmt.Sprintf(loss.how, version(f), f.Endpoint().Addr(), sinkName(f)))
			if err != nil {
				return result{}, fmt.Errorf("%s, %s: %w", f, loss.what, err)
			}
			p := p99(absences)
			r.rows = append(r.rows, row{
				what: fmt.Sprintf("%s: %s", familyName(f), loss.what), goal: "p99 ≤ " + milliseconds(pieceGoal),
				result: fmt.Sprintf("median %s, p99 %s, max %s, n = %d",
					milliseconds(median(absences)), milliseconds(p), milliseconds(quantile(absences, 1)), len(absences)),
				met: verdict(p <= pieceGoal),
			})
			b.log.Printf("pieces: %s: %s", r.rows[len(r.rows)-1].what, r.rows[len(r.rows)-1].result)
		}
	}
	return r, nil
}

func pieceAbsences(ctx context.Context, b *bench, f imds.Family, command string) (absences []time.Duration, err error) {
	err = withNode(ctx, rules.NFT, func(n *node) error {
		return b.withAgent(ctx, n, func(*agent) (err error) {
			c, err := newPieceCounter(n, f)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, c.Close()) }()
			for range b.sizes.repairs6 {
				if err := wait(ctx, tamperPause+rand.N(tamperJitter)); err != nil {
					return err
				}
				absence, err := observeTampering(ctx, c, 1, pollPause, patience, func() error {
					_, err := n.output(ctx, "sh", "-c", command)
					return err
				})
				if err != nil {
					return err
				}
				absences = append(absences, absence)
			}
			return nil
		})
	})
	return absences, err
}

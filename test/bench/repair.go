//go:build linux

// The time from a rule's removal to its return.

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

const (
	// foreignRules is how many rules of others the crowded nodes have.
	foreignRules = 50_000
	// The pause between two tamperings keeps below the rate at which the guard begins to space its repairs, and its
	// jitter covers the period of the guard's poll.
	tamperPause  = 200 * time.Millisecond
	tamperJitter = 100 * time.Millisecond
)

// repairCase is one node that is tampered with.
type repairCase struct {
	backend rules.Backend
	family  imds.Family
	foreign int
	n       int
	goal    repairGoal
}

type repairGoal struct{ median, p99 time.Duration }

func measureRepair(ctx context.Context, b *bench) (result, error) {
	nft := repairGoal{5 * time.Millisecond, 40 * time.Millisecond}
	legacy := repairGoal{60 * time.Millisecond, 130 * time.Millisecond}
	// One command on a table of 50,000 rules takes up to 190 ms more.
	crowded := repairGoal{250 * time.Millisecond, 320 * time.Millisecond}
	cases := []repairCase{
		{rules.NFT, imds.IPv4, 0, b.sizes.repairs, nft},
		{rules.NFT, imds.IPv6, 0, b.sizes.repairs6, nft},
		{rules.NFT, imds.IPv4, foreignRules, b.sizes.repairs, nft},
		{rules.Legacy, imds.IPv4, 0, b.sizes.repairs, legacy},
		{rules.Legacy, imds.IPv6, 0, b.sizes.repairs6, legacy},
		{rules.Legacy, imds.IPv4, foreignRules, b.sizes.repairs, crowded},
	}
	r := result{how: fmt.Sprintf("A separate observer counts the rules in the kernel, by a netlink dump of FORWARD "+
		"(nft) or IPT_SO_GET_INFO (legacy), in a loop with a pause of about %s, while `iptables -F FORWARD` is run every %s "+
		"plus up to %s. The time is from the start of the last query that found the rule to the end of the first one that "+
		"found it again: never too short, and too long by one pause at most. An absence that fell between two "+
		"queries counts as the longest time between any two. Before and after each case iptables itself confirms "+
		"that the rule is there, once. The foreign rules are in a chain of their own in `filter`.",
		2*pollPause, tamperPause, tamperJitter)}
	for _, c := range cases {
		absences, err := c.measure(ctx, b)
		if err != nil {
			return result{}, fmt.Errorf("%s: %w", c, err)
		}
		r.rows = append(r.rows, c.row(absences))
		b.log.Printf("repair: %s: %s", c, r.rows[len(r.rows)-1].result)
	}
	return r, nil
}

func (c repairCase) String() string {
	s := fmt.Sprintf("%s, %s", c.backend, familyName(c.family))
	if c.foreign > 0 {
		s += ", 50,000 foreign rules"
	}
	return s
}

func (c repairCase) measure(ctx context.Context, b *bench) (absences []time.Duration, err error) {
	err = withNode(ctx, c.backend, func(n *node) error {
		if err := n.addForeign(ctx, c.family, c.foreign); err != nil {
			return err
		}
		return b.withAgent(ctx, n, func(*agent) (err error) {
			absences, err = n.tamper(ctx, c.family, c.n, func() error { return nil })
			return err
		})
	})
	return absences, err
}

// tamper flushes FORWARD n times and observes how long each time the rule is away. after is called each time, before the
// next.
func (n *node) tamper(ctx context.Context, f imds.Family, times int, after func() error) (absences []time.Duration, err error) {
	c, err := newCounter(n, f)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	if err := n.verify(ctx, f); err != nil {
		return nil, err
	}
	present, err := c.Count()
	if err != nil {
		return nil, err
	}
	for range times {
		if err := wait(ctx, tamperPause+rand.N(tamperJitter)); err != nil {
			return nil, err
		}
		absence, err := observeTampering(ctx, c, present, pollPause, patience, func() error {
			_, err := n.iptables(ctx, f, "-F", "FORWARD")
			return err
		})
		if err != nil {
			return nil, err
		}
		absences = append(absences, absence)
		if err := after(); err != nil {
			return nil, err
		}
	}
	if err := wait(ctx, tamperPause); err != nil {
		return nil, err
	}
	return absences, n.verify(ctx, f)
}

// addForeign loads rules of somebody else into the filter table.
func (n *node) addForeign(ctx context.Context, f imds.Family, count int) error {
	if count == 0 {
		return nil
	}
	var input strings.Builder
	input.WriteString("*filter\n:FOREIGN - [0:0]\n")
	for i := range count {
		fmt.Fprintf(&input, "-A FOREIGN -s 10.%d.%d.%d/32 -j RETURN\n", i>>16, i>>8&0xff, i&0xff)
	}
	input.WriteString("COMMIT\n")
	cmd := n.Command(ctx, tool(n.backend, f)+"-restore", "-w", "--noflush")
	cmd.Stdin = strings.NewReader(input.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("loading foreign rules: %w: %s", err, out)
	}
	return nil
}

func (c repairCase) row(absences []time.Duration) row {
	m, p := median(absences), p99(absences)
	return row{
		what: c.String(),
		goal: fmt.Sprintf("median ≤ %s, p99 ≤ %s", milliseconds(c.goal.median), milliseconds(c.goal.p99)),
		result: fmt.Sprintf("median %s, p99 %s, max %s, n = %d",
			milliseconds(m), milliseconds(p), milliseconds(quantile(absences, 1)), len(absences)),
		met: verdict(m <= c.goal.median && p <= c.goal.p99),
	}
}

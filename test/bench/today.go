//go:build linux

// What users have today, tampered with in the same way: the shell loop, and an agent of others that looks after its own
// rule.

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// fleet is how many nodes have a way of keeping a rule, and how often each is tampered with.
type fleet struct{ nodes, tamperings int }

// keeper is a way of keeping a rule by looking after it now and then.
type keeper struct {
	name   string
	period time.Duration
	fleet  fleet
	// table and chain are where the rule is.
	table, chain string
	// command starts the keeper.
	command func(context.Context, *node) (*exec.Cmd, error)
}

func measureToday(ctx context.Context, b *bench) (result, error) {
	keepers := []keeper{
		shellLoop(time.Minute, b.sizes.every60),
		shellLoop(5*time.Second, b.sizes.every5),
		peer(b.sizes.every60),
	}
	r := result{how: fmt.Sprintf("Tampered with and observed as above (nft, IPv4; a query every %s), on many nodes at the "+
		"same time. For each keeper the moments of tampering are spread evenly, with jitter, over its period. The shell loop is `while "+
		"true; do iptables -C … || iptables -I …; sleep N; done`. %s", slowPollPause, peerHow)}
	rows := make([]row, len(keepers))
	err := together(ctx, len(keepers), func(ctx context.Context, i int) (err error) {
		rows[i], err = keepers[i].measure(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", keepers[i].name, err)
		}
		b.log.Printf("today: %s: %s", keepers[i].name, rows[i].result)
		return nil
	})
	r.rows = rows
	return r, err
}

func shellLoop(period time.Duration, f fleet) keeper {
	script := fmt.Sprintf("while true; do %[1]s -w -C FORWARD %[2]s 2>/dev/null || %[1]s -w -I FORWARD %[2]s; sleep %[3]d; done",
		tool(rules.NFT, imds.IPv4), strings.Join(rule(imds.IPv4), " "), int(period.Seconds()))
	return keeper{
		name: fmt.Sprintf("shell loop, every %.0f s", period.Seconds()), period: period, fleet: f, table: "filter", chain: "FORWARD",
		command: func(ctx context.Context, n *node) (*exec.Cmd, error) { return n.Command(ctx, "sh", "-c", script), nil },
	}
}

func (k keeper) measure(ctx context.Context) (row, error) {
	var mu sync.Mutex
	var absences []time.Duration
	total := k.fleet.nodes * k.fleet.tamperings
	err := together(ctx, k.fleet.nodes, func(ctx context.Context, node int) error {
		return k.onNode(ctx, func(tampering int) time.Duration {
			share := k.period / time.Duration(total)
			return share*time.Duration(tampering*k.fleet.nodes+node) + rand.N(share)
		}, func(a time.Duration) {
			mu.Lock()
			defer mu.Unlock()
			absences = append(absences, a)
		})
	})
	if err != nil {
		return row{}, err
	}
	return row{
		what: k.name,
		result: fmt.Sprintf("median %s, max %s, n = %d",
			seconds(median(absences)), seconds(quantile(absences, 1)), len(absences)),
	}, nil
}

// onNode starts the keeper on a node and tampers with its rule, each time phase after the keeper was seen at work.
func (k keeper) onNode(ctx context.Context, phase func(int) time.Duration, seen func(time.Duration)) error {
	return withNode(ctx, rules.NFT, func(n *node) (err error) {
		c, err := newNFTCounter(n.Host(), imds.IPv4, k.table, k.chain)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		cmd, err := k.command(ctx, n)
		if err != nil {
			return err
		}
		log := &testnode.Log{}
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			return fmt.Errorf("starting the keeper: %w", err)
		}
		defer func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			if err != nil {
				err = fmt.Errorf("%w\nits log:\n%s", err, log.Tail(30))
			}
		}()
		// The rule is not there yet, which is the end of an absence.
		if _, err := observeTampering(ctx, c, 1, slowPollPause, patience, func() error { return nil }); err != nil {
			return err
		}
		for i := range k.fleet.tamperings {
			if err := wait(ctx, phase(i)); err != nil {
				return err
			}
			absence, err := observeTampering(ctx, c, 1, slowPollPause, k.period+patience, func() error {
				_, err := n.iptables(ctx, imds.IPv4, "-t", k.table, "-F", k.chain)
				return err
			})
			if err != nil {
				return err
			}
			seen(absence)
		}
		return nil
	})
}

//go:build linux

// Command bench measures what imds-guard promises, and what users have without it, on throwaway nodes made of network
// namespaces: `make bench`. It prints a table, and a full run writes it to a file together with the data of the machine.
// A number that could not be measured ends the program; a goal that was missed is shown as such.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// longest bounds the whole run, building included.
const longest = 20 * time.Minute

func main() { os.Exit(run()) }

func run() int {
	if testnode.RunSocketCalls() {
		return 0
	}
	opts, err := parseFlags(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, longest)
	defer cancel()
	if err := measure(ctx, opts); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("stopped early: %w", err)
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// bench is what the figures share.
type bench struct {
	guard string // the binary
	sizes sizes
	log   *log.Logger
}

// sizes are how much is measured.
type sizes struct {
	repairs, repairs6 int // tamperings per case, of IPv4 and of IPv6
	flushes           int
	starts            int
	idle              time.Duration
	pairs             int
	pairHalf          time.Duration
	every60, every5   fleet
}

var (
	full = sizes{
		repairs: 200, repairs6: 60, flushes: 100, starts: 20, idle: time.Minute, pairs: 10, pairHalf: time.Second,
		every60: fleet{nodes: 8, tamperings: 2}, every5: fleet{nodes: 4, tamperings: 20},
	}
	quick = sizes{
		repairs: 25, repairs6: 10, flushes: 10, starts: 5, idle: 20 * time.Second, pairs: 3, pairHalf: 500 * time.Millisecond,
		every60: fleet{nodes: 2, tamperings: 1}, every5: fleet{nodes: 2, tamperings: 4},
	}
)

// figure is one subject of the report. Those of one stage are measured at the same time.
type figure struct {
	name    string // for --only
	title   string
	measure func(context.Context, *bench) (result, error)
}

var stages = [][]figure{
	{{"repair", "Time to repair after tampering", measureRepair}},
	{{"pieces", "Time to repair a lost piece of the route layer", measurePieces}},
	{{"leak", "Requests that reach the endpoint while the rule is flushed", measureLeak}},
	{{"start", "Start-up time", measureStart}},
	{{"datapath", "Other traffic", measureDatapath}},
	{{"sockets", "Socket calls of pods", measureSockets}},
	{{"asking", "Reporting who asks", measureAsking}},
	{{"idle", "Idle", measureIdle}, {"today", "Time to repair after tampering, with what users have today", measureToday}},
}

// selected returns the stages with the figures to be measured.
func selected(only string) (chosen [][]figure, err error) {
	var names []string
	for _, stage := range stages {
		var some []figure
		for _, f := range stage {
			names = append(names, f.name)
			if only == "" || only == f.name {
				some = append(some, f)
			}
		}
		if len(some) > 0 {
			chosen = append(chosen, some)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("--only %q is not a figure; use one of %s", only, strings.Join(names, ", "))
	}
	return chosen, nil
}

func measure(ctx context.Context, opts options) error {
	chosen, err := selected(opts.only)
	if err != nil {
		return err
	}
	b := &bench{guard: opts.guard, sizes: full, log: log.New(os.Stderr, "bench: ", log.Ltime)}
	if opts.quick {
		b.sizes = quick
	}
	m, err := readMachine(ctx, opts.guard)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(slices.Concat(chosen...), func(f figure) bool { return f.name == "today" }) {
		if err := buildPeer(ctx, b); err != nil {
			return err
		}
	}
	started := time.Now()
	var report []section
	for _, stage := range chosen {
		sections, err := b.runStage(ctx, stage)
		if err != nil {
			return err
		}
		report = append(report, sections...)
	}
	fmt.Print(table(report))
	b.log.Printf("measured in %s", time.Since(started).Round(time.Second))
	if opts.quick || opts.only != "" || opts.out == "" {
		b.log.Print("not a full run, or no --out: nothing written")
		return nil
	}
	if err := os.WriteFile(opts.out, []byte(document(m, report)), 0o644); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	b.log.Printf("written to %s", opts.out)
	return nil
}

// runStage measures the figures of a stage at the same time. The first error ends all of them.
func (b *bench) runStage(ctx context.Context, stage []figure) ([]section, error) {
	sections := make([]section, len(stage))
	err := together(ctx, len(stage), func(ctx context.Context, i int) error {
		f := stage[i]
		b.log.Printf("%s: begins", f.name)
		r, err := f.measure(ctx, b)
		if err != nil {
			return fmt.Errorf("measuring %s: %w", f.name, err)
		}
		sections[i] = section{f.title, r}
		b.log.Printf("%s: done", f.name)
		return nil
	})
	return sections, err
}

type options struct {
	guard, out, only string
	quick            bool
}

func parseFlags(args []string) (options, error) {
	var opts options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.StringVar(&opts.guard, "guard", "bin/imds-guard", "the imds-guard `binary`")
	flags.StringVar(&opts.out, "out", "", "the `file` to which a full run writes its report")
	flags.StringVar(&opts.only, "only", "", "measure only this `figure`, and write nothing")
	flags.BoolVar(&opts.quick, "quick", false, "measure less, and write nothing")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	if flags.NArg() > 0 {
		return opts, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var err error
	if opts.guard, err = filepath.Abs(opts.guard); err != nil { // the node's commands start in /
		return opts, err
	}
	if _, err := os.Stat(opts.guard); err != nil {
		return opts, fmt.Errorf("--guard: %w", err)
	}
	return opts, nil
}

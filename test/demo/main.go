//go:build linux

// Command demo shows on one machine, with nothing but root, what imds-guard does: a node and two pods made of network
// namespaces, AWS's own metadata mock as the endpoint, the real guard, and every claim tested by real packets. It fails
// when a claim is not so.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

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
		fmt.Fprintln(os.Stderr, "demo:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()

	out := newPrinter(os.Stdout)
	start := time.Now()
	if err := demo(ctx, opts, out); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("stopped early: %w", context.Cause(ctx))
		}
		out.failure(err)
		return 1
	}
	out.success("Everything shown was so. (%.1f s; nothing is left behind.)", time.Since(start).Seconds())
	return 0
}

type options struct {
	guard, imds string // binaries
	backend     string
}

func parseFlags(args []string) (options, error) {
	var opts options
	flags := flag.NewFlagSet("demo", flag.ContinueOnError)
	flags.StringVar(&opts.guard, "guard", "bin/imds-guard", "the imds-guard `binary`")
	flags.StringVar(&opts.imds, "imds", "", "the amazon-ec2-metadata-mock `binary`")
	flags.StringVar(&opts.backend, "backend", "nft", "which iptables backend to use: nft or legacy")
	if err := flags.Parse(args); err != nil {
		return opts, err
	}
	var errs []error
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	if opts.backend != "nft" && opts.backend != "legacy" {
		errs = append(errs, fmt.Errorf("--backend is %q, want nft or legacy", opts.backend))
	}
	var err error
	if opts.guard, err = lookUp(opts.guard); err != nil {
		errs = append(errs, fmt.Errorf("finding the binary for --guard: %w", err))
	}
	if opts.imds, err = lookUp(opts.imds); err != nil {
		errs = append(errs, fmt.Errorf("finding the binary for --imds: %w", err))
	}
	return opts, errors.Join(errs...)
}

// lookUp returns the absolute path, for the node's commands start in another directory.
func lookUp(path string) (string, error) {
	found, err := exec.LookPath(path)
	if err != nil {
		return "", err
	}
	return filepath.Abs(found)
}

//go:build linux

// The guard's process.

package main

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

const metricsAddress = "127.0.0.1:9169"

// guard is a running imds-guard.
type guard struct {
	cmd   *exec.Cmd
	log   *testnode.Log
	ended <-chan error
}

// startGuard starts the guard on the node, with more flags, and waits until it says that it is ready.
func (d *demonstration) startGuard(ctx context.Context, more ...string) error {
	cmd := d.node.Command(ctx, d.opts.guard, append([]string{"run", "--kubernetes", "off", "--metrics-bind-address", metricsAddress,
		"--log-format", "text"}, append(d.flags(), more...)...)...)
	g := &guard{cmd: cmd, log: &testnode.Log{}}
	cmd.Stdout, cmd.Stderr = g.log, g.log
	var err error
	if g.ended, err = start(cmd); err != nil {
		return fmt.Errorf("starting the guard: %w", err)
	}
	d.guard = g

	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := d.node.Host().Get(ctx, "http://"+metricsAddress+"/readyz")
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the guard to be ready: %w", err)
		case err := <-g.ended:
			return fmt.Errorf("waiting for the guard to be ready: it ended: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// stop ends the guard as the kubelet does.
func (g *guard) stop() error {
	if err := g.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return fmt.Errorf("stopping the guard: %w", err)
	}
	if err := <-g.ended; !g.cmd.ProcessState.Success() {
		return fmt.Errorf("stopping the guard: %w", err)
	}
	return nil
}

// kill ends the guard in the way that leaves it no time for anything.
func (g *guard) kill() error {
	select {
	case err := <-g.ended:
		return fmt.Errorf("killing the guard: it had ended already: %w", err)
	default:
	}
	if err := g.cmd.Process.Kill(); err != nil {
		return fmt.Errorf("killing the guard: %w", err)
	}
	<-g.ended
	return nil
}

//go:build linux

// The nodes on which everything is measured, and the agent on them.

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// patience bounds what must happen, so that a measurement that can't succeed ends.
const patience = 15 * time.Second

// backends are the two in which everything is measured.
var backends = []rules.Backend{rules.NFT, rules.Legacy}

// The layers in which things are measured. By default the guard keeps all.
var (
	iptablesAlone = []string{rules.LayerName}
	routeAlone    = []string{route.LayerName}
	bothLayers    = []string{rules.LayerName, route.LayerName}
	allLayers     = []string{rules.LayerName, route.LayerName, cgroup.LayerName}
)

// node is a throwaway node whose kubelet and agents use one iptables backend, with one pod.
type node struct {
	*testnode.Node
	pod     *testnode.Pod
	backend rules.Backend
	layers  []string // that the guard is asked for
	pods    string   // their cgroup
	flags   []string // more of the guard's
}

// newNode makes a node. The chain that a kubelet leaves in the mangle table lets the guard find the backend, so that it
// runs with its default flags.
func newNode(ctx context.Context, backend rules.Backend) (n *node, err error) {
	n = &node{backend: backend, layers: allLayers}
	if n.Node, err = testnode.New(); err != nil {
		return nil, err
	}
	if n.pods, err = n.PodsCgroup(); err == nil {
		n.pod, err = n.AddPod("eni0123456789a")
	}
	if err == nil {
		for _, f := range imds.Families {
			_, err = n.iptables(ctx, f, "-t", "mangle", "-N", "KUBE-KUBELET-CANARY")
			if err != nil {
				break
			}
		}
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// withNode makes a node, and removes it after f.
func withNode(ctx context.Context, backend rules.Backend, f func(*node) error) error {
	n, err := newNode(ctx, backend)
	if err != nil {
		return err
	}
	return errors.Join(f(n), n.Close())
}

// tool is the name of the backend's command.
func tool(backend rules.Backend, f imds.Family) string {
	if f == imds.IPv6 {
		return "ip6tables-" + string(backend)
	}
	return "iptables-" + string(backend)
}

// iptables runs the backend's command on the node and returns what it prints.
func (n *node) iptables(ctx context.Context, f imds.Family, args ...string) (string, error) {
	return n.output(ctx, tool(n.backend, f), append([]string{"-w"}, args...)...)
}

func (n *node) output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := n.Command(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}

// rule is the guard's rule as arguments of iptables.
func rule(f imds.Family) []string {
	return []string{"-i", "eni+", "-d", f.Endpoint().String(), "-j", "DROP"}
}

// verify asks iptables whether FORWARD has the rule, once, and nothing else: what the observers counted was it.
func (n *node) verify(ctx context.Context, f imds.Family) error {
	if _, err := n.iptables(ctx, f, append([]string{"-C", "FORWARD"}, rule(f)...)...); err != nil {
		return fmt.Errorf("verifying that the rule is there: %w", err)
	}
	got, err := n.iptables(ctx, f, "-S", "FORWARD")
	if err != nil {
		return fmt.Errorf("verifying that the rule is there: %w", err)
	}
	want := "-P FORWARD ACCEPT\n-A FORWARD -d " + f.Endpoint().String() + " -i eni+ -j DROP\n"
	if got != want {
		return fmt.Errorf("verifying that the rule is there: want\n%s\ngot\n%s", want, got)
	}
	return nil
}

// agent is a running imds-guard.
type agent struct {
	cmd   *exec.Cmd
	log   testnode.Log
	ended chan error
}

// startAgent executes `imds-guard run` with the node's layers, which by default are the guard's own.
func (b *bench) startAgent(ctx context.Context, n *node) (*agent, error) {
	flags := []string{"run", "--layers", strings.Join(n.layers, ",")}
	if slices.Contains(n.layers, cgroup.LayerName) {
		flags = append(flags, "--pods-cgroup", n.pods) // which on a node of Kubernetes is found
	}
	a := &agent{cmd: n.Command(ctx, b.guard, append(flags, n.flags...)...), ended: make(chan error, 1)}
	a.cmd.Stdout, a.cmd.Stderr = &a.log, &a.log
	if err := a.cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	go func() { a.ended <- a.cmd.Wait() }()
	return a, nil
}

// stop ends the agent in the regular way.
func (a *agent) stop() error {
	if err := a.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stopping the guard: %w", a.explain(err))
	}
	select {
	case err := <-a.ended:
		if err != nil {
			return fmt.Errorf("stopping the guard: %w", a.explain(err))
		}
		return nil
	case <-time.After(patience):
		return fmt.Errorf("stopping the guard: %w", a.explain(errors.New("it did not end")))
	}
}

// explain adds what the agent said last to an error.
func (a *agent) explain(err error) error {
	return fmt.Errorf("%w\nthe guard's log:\n%s", err, a.log.Tail(30))
}

// withAgent starts the agent, waits until the layers of both families are in place, and stops it after f.
func (b *bench) withAgent(ctx context.Context, n *node, f func(*agent) error) error {
	absent, err := n.countAll()
	if err != nil {
		return err
	}
	a, err := b.startAgent(ctx, n)
	if err != nil {
		return err
	}
	if _, err := n.waitStarted(ctx, absent); err != nil {
		return errors.Join(a.explain(err), a.stop())
	}
	// The first look is over; let what it wakes come to rest.
	err = wait(ctx, 500*time.Millisecond)
	if err == nil {
		err = f(a)
	}
	if err != nil {
		err = a.explain(err)
	}
	return errors.Join(err, a.stop())
}

// cleanup removes the rules again.
func (b *bench) cleanup(ctx context.Context, n *node) error {
	_, err := n.output(ctx, b.guard, "cleanup")
	return err
}

// wait is a sleep that ends with ctx.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

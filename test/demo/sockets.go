//go:build linux

// The layer of sockets: a pod in the node's own network, and a probe.

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// hostPod is the cgroup of a pod in the node's network, below the pods'.
const hostPod = "pod2/container"

// inNodesNetwork connects to the endpoint from a pod in the node's network, by both families, and says what became of it.
func (d *demonstration) inNodesNetwork(want string) error {
	var calls []string
	for _, f := range d.families {
		calls = append(calls, "tcp "+f.probeAddress)
	}
	results, err := d.node.SocketCallsBy(hostPod, d.node.Host(), calls...)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(results, func(got string) bool { return got != want }) {
		return fmt.Errorf("the calls of a pod in the node's network end in %q, and were to end in %s", results, want)
	}
	return nil
}

func (d *demonstration) stepHostNetwork(context.Context) error {
	if d.podsCgroup == "" {
		d.out.done("left out: this machine has no cgroup v2")
		return nil
	}
	if err := d.inNodesNetwork("EPERM"); err != nil {
		return err
	}
	d.out.good("connect: operation not permitted (IPv4 and IPv6). Before the guard started, it was connected.")
	return nil
}

func (d *demonstration) stepProbe(ctx context.Context) error {
	cmd := d.node.Command(ctx, d.opts.guard, append([]string{"check", "--probe"}, d.flags()...)...)
	stoppedBy := []string{"iptables"}
	if d.podsCgroup != "" {
		container, err := d.node.InContainer(cmd)
		if err != nil {
			return err
		}
		defer container.Close()
		stoppedBy = append(stoppedBy, "cgroup")
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("running imds-guard check --probe: %w\n%s", err, out)
	}
	d.out.done("imds-guard check --probe")
	said := 0
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "probe ") {
			d.out.quote(line)
			said++
		}
	}
	for _, layer := range stoppedBy {
		if n := strings.Count(string(out), "stopped by "+layer); n != len(d.families) {
			return fmt.Errorf("%d probes were stopped by %s, not one of each family:\n%s", n, layer, out)
		}
	}
	d.out.good("%d packets and calls of its own were sent as a pod would, and each layer's counter says who stopped them", said)
	return nil
}

// flags are those that the guard and its check are given.
func (d *demonstration) flags() []string {
	flags := []string{"--backend", d.opts.backend}
	if d.podsCgroup != "" {
		flags = append(flags, "--pods-cgroup", d.podsCgroup, "--host-network-pods", "block")
	}
	return flags
}

// findCgroups makes the pods' cgroup, if the machine has cgroup v2.
func (d *demonstration) findCgroups() error {
	if !testnode.HasCgroup2() {
		return nil
	}
	var err error
	d.podsCgroup, err = d.node.PodsCgroup()
	return err
}

//go:build linux

// The layer of sockets: whether all its programs are in force.

package main

import (
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// hooks are the programs that the guard attaches to the pods' cgroup, of both families: two of them at connect6, one for
// IPv4-mapped addresses.
var hooks = map[ebpf.AttachType]int{
	ebpf.AttachCGroupInet4Connect: 1, ebpf.AttachCGroupUDP4Sendmsg: 1, ebpf.AttachCGroupInet6Connect: 2, ebpf.AttachCGroupUDP6Sendmsg: 1,
}

// hookCounter counts whole layers: one, or none if a program of either family is missing.
type hookCounter struct{ pods *os.File }

func newHookCounter(n *node) (c hookCounter, err error) {
	directory, err := n.PodsCgroup()
	if err != nil {
		return c, err
	}
	c.pods, err = os.Open(directory)
	return c, err
}

// Count implements counter.
func (c hookCounter) Count() (int, error) {
	for at, want := range hooks {
		found, err := link.QueryPrograms(link.QueryOptions{Target: int(c.pods.Fd()), Attach: at})
		if err != nil {
			return 0, fmt.Errorf("counting programs: %w", err)
		}
		if len(found.Programs) < want {
			return 0, nil
		}
	}
	return 1, nil
}

// Close implements counter.
func (c hookCounter) Close() error { return c.pods.Close() }

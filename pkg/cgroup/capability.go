// Whether the agent may use BPF.

package cgroup

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// mayBPF says why not. Programs of this kind need CAP_NET_ADMIN beside CAP_BPF, and CAP_SYS_ADMIN is both (kernel/bpf/syscall.c,
// bpf_prog_load).
func mayBPF() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading the own capabilities: %w", err)
	}
	has := func(c uint) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if has(unix.CAP_SYS_ADMIN) || has(unix.CAP_BPF) && has(unix.CAP_NET_ADMIN) {
		return nil
	}
	return impossible{errors.New("the agent has no CAP_BPF, or no CAP_NET_ADMIN")}
}

// Whether one of our programs would switch off somebody else's.

package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// overrides returns an error if a cgroup above has a program that a program below it replaces for everything below: one
// attached with BPF_F_ALLOW_OVERRIDE (kernel/bpf/cgroup.c, compute_effective_progs). Such a program is not ours, and may itself
// refuse or redirect.
func overrides(at *os.File, hook ebpf.AttachType) error {
	for directory := filepath.Dir(at.Name()); isCgroup2(directory) == nil; directory = filepath.Dir(directory) {
		above, err := os.Open(directory)
		if err != nil {
			return fmt.Errorf("opening the parent cgroup: %w", err)
		}
		programs, flags, err := attached(above, hook)
		above.Close()
		if err != nil {
			return fmt.Errorf("listing the programs of %s: %w", directory, err)
		}
		if programs > 0 && flags&unix.BPF_F_ALLOW_MULTI == 0 {
			return fmt.Errorf("another program at %s would be switched off for all pods: it was attached without BPF_F_ALLOW_MULTI", directory)
		}
		if programs > 0 {
			return nil // programs further up are not in force here
		}
	}
	return nil
}

// attached returns how many programs are attached to a cgroup's hook, and with which flags. The library does not report the
// flags.
func attached(at *os.File, hook ebpf.AttachType) (programs, flags uint32, err error) {
	// The part for BPF_PROG_QUERY of union bpf_attr (include/uapi/linux/bpf.h).
	query := struct {
		target, hook, queryFlags, attachFlags uint32
		ids                                   uint64
		count, _                              uint32
	}{target: uint32(at.Fd()), hook: uint32(hook)}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_QUERY, uintptr(unsafe.Pointer(&query)), unsafe.Sizeof(query))
	if errno != 0 {
		return 0, 0, errno
	}
	return query.count, query.attachFlags, nil
}

//go:build linux

// The node's mount namespace.

package testnode

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// addMount gives the namespace a mount namespace with its own /run (so that the node has its own xtables lock), its own view of
// /sys (where class/net shows the network namespace that mounted it) and its own BPF file system (so that pinned objects go
// away with the node). It shares the other file systems with everybody.
func (ns *Namespace) addMount() error {
	return onPrivateThread(func(t *thread) error {
		return t.within(ns.net, "net", func() (err error) {
			ns.mount, err = t.create(unix.CLONE_NEWNS, "mnt", mountAll)
			return err
		})
	})
}

func mountAll() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mounting /run: %w", err)
	}
	return remountSys()
}

// remountSys puts a new sysfs over /sys, with what was mounted below it (cgroups, tracing) and a new BPF file system.
func remountSys() error {
	below, err := mountsBelow("/sys")
	if err != nil {
		return err
	}
	trees := make(map[string]int)
	defer func() {
		for _, fd := range trees {
			unix.Close(fd)
		}
	}()
	for _, path := range below {
		fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
		if err != nil {
			return fmt.Errorf("copying the mounts at %s: %w", path, err)
		}
		trees[path] = fd
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", 0, ""); err != nil {
		return fmt.Errorf("mounting /sys: %w", err)
	}
	for path, fd := range trees {
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mounting %s again: %w", path, err)
		}
	}
	// ENOENT, ENODEV: a kernel without BPF has nowhere to mount it, and nothing to pin.
	err = unix.Mount("bpf", "/sys/fs/bpf", "bpf", 0, "mode=700")
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("mounting /sys/fs/bpf: %w", err)
	}
	return nil
}

// mountsBelow lists the topmost mount points below dir in this thread's mount namespace.
func mountsBelow(dir string) ([]string, error) {
	info, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	slices.Sort(found)
	var topmost []string
	for _, path := range found {
		if n := len(topmost); n == 0 || path != topmost[n-1] && !strings.HasPrefix(path, topmost[n-1]+"/") {
			topmost = append(topmost, path)
		}
	}
	return topmost, nil
}

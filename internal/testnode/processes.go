//go:build linux

// Processes that are still in a namespace when it is to be removed.

package testnode

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// killProcesses kills all processes in the namespaces and waits until they have left them.
func killProcesses(namespaces []*Namespace) error {
	ours := make(map[string]bool)
	for _, ns := range namespaces {
		for _, f := range []*os.File{ns.net, ns.mount} {
			if f == nil {
				continue
			}
			id, err := os.Readlink(procPath(f))
			if err != nil {
				return fmt.Errorf("identifying a namespace: %w", err)
			}
			ours[id] = true
		}
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		left, err := killOnce(ours)
		if err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("killing processes: %d of them still there", left)
		}
	}
}

// killOnce kills the processes that it finds in the namespaces, and returns how many it found.
func killOnce(ours map[string]bool) (found int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, fmt.Errorf("listing processes: %w", err)
	}
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == os.Getpid() || !inNamespaces(dir, ours) {
			continue
		}
		// The handle refers to one process, whoever gets its number later, so look again before killing.
		process, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		if inNamespaces(dir, ours) {
			found++
			_ = process.Kill() // an error means that it has just ended; the next round will show
		}
		_ = process.Release()
	}
	return found, nil
}

// inNamespaces reports whether a process is in one of the namespaces. One that has ended is in none.
func inNamespaces(procDir string, ours map[string]bool) bool {
	for _, kind := range []string{"net", "mnt"} {
		if id, err := os.Readlink(filepath.Join(procDir, "ns", kind)); err == nil && ours[id] {
			return true
		}
	}
	return false
}

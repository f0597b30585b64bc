// The bound on the time of a command, for which go-iptables has no means.
package rules

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// bounded runs f, which runs one command, and after d kills every process that this one has started: go-iptables takes no
// context and hides the process, but the one goroutine that owns the rules runs one command at a time, and nothing else
// in the program starts any.
func bounded(d time.Duration, f func() error) error {
	var hung atomic.Bool
	timer := time.AfterFunc(d, func() {
		hung.Store(true)
		killDescendants(os.Getpid())
	})
	defer timer.Stop()
	err := f()
	if err != nil && hung.Load() {
		return fmt.Errorf("%w after %s: %w", errHung, d, err)
	}
	return err
}

// killDescendants kills every descendant of pid. A descendant may hold the pipe on which the command's output is awaited,
// so killing the command alone would not end the wait.
func killDescendants(pid int) {
	children := map[int][]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		if child, err := strconv.Atoi(e.Name()); err == nil {
			if parent, ok := parentOf(child); ok {
				children[parent] = append(children[parent], child)
			}
		}
	}
	var kill func(int)
	kill = func(parent int) {
		for _, child := range children[parent] {
			kill(child)
			_ = unix.Kill(child, unix.SIGKILL) // it may have ended by itself
		}
	}
	kill(pid)
}

// parentOf reads the fourth field of /proc/PID/stat; the second, a name in parentheses, may contain anything (proc(5)).
func parentOf(pid int) (int, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0, false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	return parent, err == nil
}

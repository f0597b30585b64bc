// Limiting the time of a command, which go-iptables can't do.

package rules

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// killAgain is the pause between two attempts to kill a hung command, which may have started other processes meanwhile.
const killAgain = 100 * time.Millisecond

// limited runs f, which runs commands, and kills those still running after d. go-iptables takes no context and hides the
// process; but a process is the child of the thread that made it (fork(2); proc(5), /proc/PID/task/TID/children), and f has
// this thread to itself. So it never hits another keeper's command, or one that client-go has started: children that the thread
// already had are left alone.
func limited(d time.Duration, f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	thread := filepath.Join("/proc/self/task", strconv.Itoa(unix.Gettid()))
	others := childrenOf(thread)

	done, ended := make(chan struct{}), make(chan struct{})
	var killed atomic.Bool
	timer := time.AfterFunc(d, func() {
		defer close(ended)
		for {
			for _, pid := range childrenOf(thread) {
				if !slices.Contains(others, pid) {
					killed.Store(true)
					killTree(pid)
				}
			}
			select {
			case <-done:
				return
			case <-time.After(killAgain):
			}
		}
	})
	err := f()
	close(done)
	if !timer.Stop() {
		<-ended // from now on others may use the thread
	}
	switch {
	case !killed.Load():
		return err
	case err == nil: // a shell whose child was killed first may still exit with 0, and half of its output
		return fmt.Errorf("%w after %s", errHung, d)
	}
	return fmt.Errorf("%w after %s: %w", errHung, d, err)
}

// childrenOf lists the children of a thread, given by its directory in /proc; none if it has ended.
func childrenOf(thread string) (pids []int) {
	text, err := os.ReadFile(filepath.Join(thread, "children"))
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(text)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killTree kills a process and all its descendants. One of them may hold the pipe from which the command's output is read, so
// killing the command alone would not end the wait.
func killTree(pid int) {
	// No other process can have this number until the parent has waited for the child; the handle makes that last.
	handle, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(handle)
	threads, _ := filepath.Glob(filepath.Join("/proc", strconv.Itoa(pid), "task", "*"))
	for _, t := range threads {
		for _, child := range childrenOf(t) {
			killTree(child)
		}
	}
	_ = unix.PidfdSendSignal(handle, unix.SIGKILL, nil, 0) // an error means that it has ended
}

// The bound on the time of a command, for which go-iptables has no means.

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

// killAgain is the pause between two attempts to end a command that did not end: it may have started others meanwhile.
const killAgain = 100 * time.Millisecond

// limited runs f, which runs commands, and kills those that still run after d. go-iptables takes no context and hides the
// process; but a process is the child of the thread that made it (fork(2); proc(5), /proc/PID/task/TID/children), and f has
// this one to itself. So no command of another keeper is hit, nor one that client-go has started: what the thread had made
// for others before is left alone.
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
		<-ended // the thread is somebody else's from now on
	}
	switch {
	case !killed.Load():
		return err
	case err == nil: // a shell whose child was killed first may still end well, with half of its output
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

// killTree kills a process with every descendant. One of them may hold the pipe on which the command's output is awaited, so
// that killing the command alone would not end the wait.
func killTree(pid int) {
	// Until its parent has waited for it, no other process can have its number; the handle makes that last.
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

// Testing in a child process whether threads can be created, where the limits can't be seen: if they can't, the Go runtime
// crashes the child.

package limits

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// trialVariable holds the number of threads to try.
	trialVariable = "IMDS_GUARD_TRIAL_THREADS"
	// trialTimeout bounds a trial, which takes some 20 ms.
	trialTimeout = 10 * time.Second
)

// init runs early: packages whose path sorts after this one's, including Kubernetes', are not initialized for a trial.
func init() {
	if n, err := strconv.Atoi(os.Getenv(trialVariable)); err == nil {
		makeThreads(n)
		os.Exit(0)
	}
}

// try returns an error if n more threads can't be created. Being unable to try is not an error.
func try(n int) error {
	memory, err := unix.MemfdCreate("trial", unix.MFD_CLOEXEC)
	if err != nil {
		return nil
	}
	said := os.NewFile(uintptr(memory), "trial") // not a pipe: reading one may need another thread
	defer said.Close()
	ctx, cancel := context.WithTimeout(context.Background(), trialTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = []string{trialVariable + "=" + strconv.Itoa(n), "GOTRACEBACK=none"}
	cmd.Stderr = said
	err = cmd.Run()
	text, _ := io.ReadAll(io.NewSectionReader(said, 0, 1<<16))
	if noThread(string(text)) || errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("making threads: a trial with %d more failed: %w: the agent's cgroup has a limit that can't be seen from "+
			"its container; raise it (podPidsLimit of the kubelet, --pids-limit of a container runtime)", n, err)
	}
	return nil
}

// noThread reports whether a program crashed because it could not create a thread: in runtime/os_linux.go (newosproc) or, with
// cgo, in runtime/cgo/gcc_linux.c.
func noThread(said string) bool {
	return strings.Contains(said, "failed to create new OS thread") || strings.Contains(said, "pthread_create failed")
}

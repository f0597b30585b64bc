// Trying by another process whether threads can be made, where the limits can't be seen: it is that one that the Go runtime
// ends then.

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
	// trialVariable has the number of threads to try.
	trialVariable = "IMDS_GUARD_TRIAL_THREADS"
	// trialTimeout bounds a trial, which takes some 20 ms.
	trialTimeout = 10 * time.Second
)

// init is early: packages whose path sorts behind this one's, Kubernetes' among them, are not initialized for a trial.
func init() {
	if n, err := strconv.Atoi(os.Getenv(trialVariable)); err == nil {
		makeThreads(n)
		os.Exit(0)
	}
}

// try returns an error if n threads can't be made beside those that there are. That it can't try is none.
func try(n int) error {
	memory, err := unix.MemfdCreate("trial", unix.MFD_CLOEXEC)
	if err != nil {
		return nil
	}
	said := os.NewFile(uintptr(memory), "trial") // no pipe: to read that, this process may need a thread
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

// noThread tells whether a program ended because it could make no thread: by runtime/os_linux.go (newosproc) or, if it uses
// cgo, runtime/cgo/gcc_linux.c.
func noThread(said string) bool {
	return strings.Contains(said, "failed to create new OS thread") || strings.Contains(said, "pthread_create failed")
}

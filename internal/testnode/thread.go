//go:build linux

// OS threads that can be switched into other namespaces.
//
// They must not end unless they can't be switched back: the runtime reuses a thread for many goroutines, and the kernel
// sends a command's Pdeathsig when the thread that started it ends.

package testnode

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

var errGoexit = errors.New("the function ended its goroutine (runtime.Goexit, testing's FailNow)")

// thread is an OS thread that one function has to itself. A dirty one must not be used by anything else afterwards.
type thread struct {
	dirty bool
}

// onThread runs fn on a new goroutine, locked to an OS thread, and waits for it. A dirty thread stays locked, and therefore
// ends with the goroutine.
func onThread(fn func(*thread) error) error {
	done := make(chan error, 1)
	go func() {
		t, err := &thread{}, errGoexit
		runtime.LockOSThread()
		defer func() {
			if !t.dirty {
				runtime.UnlockOSThread()
			}
			done <- err
		}()
		if unix.Gettid() == unix.Getpid() {
			// /proc/self shows the main thread, and the runtime can't end it. While it is occupied, the next attempt gets
			// another thread.
			err = onThread(fn)
			return
		}
		err = fn(t)
	}()
	return <-done
}

// Entering a mount namespace needs a thread that doesn't share its root and working directory, and a thread that has stopped
// sharing them can't start again. So these threads are kept for the next job.
type job struct {
	fn   func(*thread) error
	done chan error
}

var jobs = make(chan job)

// onPrivateThread is onThread on a thread with a root and a working directory of its own.
func onPrivateThread(fn func(*thread) error) error {
	j := job{fn, make(chan error, 1)}
	select {
	case jobs <- j: // one was idle
	default:
		go onThread(func(t *thread) error { return work(t, j) })
	}
	return <-j.done
}

// work makes the thread private and lets it do this job and those after it.
func work(t *thread, j job) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		err = fmt.Errorf("unsharing the file system attributes: %w", err)
		j.done <- err
		return err
	}
	t.dirty = true
	for {
		var during thread
		j.run(&during)
		if during.dirty {
			return nil
		}
		j = <-jobs
	}
}

func (j job) run(t *thread) {
	err := errGoexit
	defer func() { j.done <- err }()
	err = j.fn(t)
}

// within runs fn with the thread switched into the namespace of the kind "net" or "mnt".
func (t *thread) within(f *os.File, kind string, fn func() error) error {
	old, err := os.Open("/proc/thread-self/ns/" + kind)
	if err != nil {
		return fmt.Errorf("opening the current %s namespace: %w", kind, err)
	}
	defer old.Close()
	if err := setns(f); err != nil {
		return fmt.Errorf("entering a %s namespace: %w", kind, err)
	}
	defer t.back(old)
	return fn()
}

// back switches the thread back to its old namespace.
func (t *thread) back(old *os.File) {
	if err := setns(old); err != nil {
		t.dirty = true
	}
}

// setns enters the namespace, keeping the file from being closed meanwhile.
func setns(f *os.File) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var setnsErr error
	if err := conn.Control(func(fd uintptr) { setnsErr = unix.Setns(int(fd), 0) }); err != nil {
		return err
	}
	return setnsErr
}

// create makes a new namespace by one of the unshare flags, and runs fn in it before the thread goes back.
func (t *thread) create(flag int, kind string, fn func() error) (*os.File, error) {
	old, err := os.Open("/proc/thread-self/ns/" + kind)
	if err != nil {
		return nil, fmt.Errorf("opening the current %s namespace: %w", kind, err)
	}
	defer old.Close()
	if err := unix.Unshare(flag); err != nil {
		return nil, fmt.Errorf("making a %s namespace: %w", kind, err)
	}
	defer t.back(old)
	if err := fn(); err != nil {
		return nil, err
	}
	created, err := os.Open("/proc/thread-self/ns/" + kind)
	if err != nil {
		return nil, fmt.Errorf("opening the new %s namespace: %w", kind, err)
	}
	return created, nil
}

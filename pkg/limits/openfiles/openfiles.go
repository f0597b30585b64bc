// Package openfiles raises the limit of open files (RLIMIT_NOFILE, getrlimit(2)) during the program's initialization: some
// dependencies open files before main (google.golang.org/protobuf/internal/detrand), and with too low a limit that alone
// makes the Go runtime throw (runtime/netpoll_epoll.go, netpollinit).
//
// It is initialized before those because it imports next to nothing, and the linker picks, among the packages whose imports
// are ready, the first by import path (cmd/link/internal/ld/inittask.go).
package openfiles

import (
	"errors"
	"strconv"
	"syscall"
)

const (
	// Limit is how many files the program and each of its commands may open: the kernel's default (INR_OPEN_CUR, linux/fs.h),
	// with which every program works, including those that use select(2).
	Limit = 1024
	// Least is the minimum for the agent. 17 were open while nothing happened and 25 while both families were being repaired;
	// its two servers may hold 256 connections (pkg/connlimit). The rest is in reserve.
	Least = 512
	// hopeless is less than the runtime and the initialization of packages need, with some margin: 8 turned out to be enough.
	hopeless = 12
)

// Err says that there are fewer than Least, and what to do about it. A limit that can't be read is not an error.
var Err error

// init sets the soft limit to Limit, and the hard limit too if it is lower and the kernel permits it (CAP_SYS_RESOURCE). It
// does so even where they are high enough: the runtime has raised the soft limit for itself only, and would start commands with
// the original one, which may be too low for them (syscall/rlimit.go).
func init() {
	var had syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &had) != nil {
		return
	}
	err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: Limit, Max: max(had.Max, Limit)})
	if err == nil {
		return
	}
	_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: had.Max, Max: had.Max})
	if had.Max >= Least {
		return
	}
	Err = errors.New("raising the hard limit of open files (RLIMIT_NOFILE) from " + strconv.FormatUint(had.Max, 10) + " to " +
		strconv.Itoa(Limit) + ": " + err.Error() + "; at least " + strconv.Itoa(Least) + " are needed: set LimitNOFILE= in the " +
		"service of the container runtime, or `ulimit -n`")
	if had.Max < hopeless {
		_, _ = syscall.Write(2, []byte("imds-guard: "+Err.Error()+"\n"))
		syscall.Exit(2)
	}
}

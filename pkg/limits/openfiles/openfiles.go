// Package openfiles raises the limit of open files (RLIMIT_NOFILE, getrlimit(2)) while the program is initialized: before
// main, packages of others open files already (google.golang.org/protobuf/internal/detrand), and with too few of them that
// alone makes the Go runtime throw (runtime/netpoll_epoll.go, netpollinit).
//
// It is initialized before those, because the linker takes the first by import path of the packages whose imports are
// ready (cmd/link/internal/ld/inittask.go), and it imports next to nothing.
package openfiles

import (
	"errors"
	"strconv"
	"syscall"
)

const (
	// Limit is how many the program and each of its commands may open: the kernel's default (INR_OPEN_CUR, linux/fs.h),
	// and what every program can stand, those that use select(2) included.
	Limit = 1024
	// Least is what the agent must not do without. 17 were seen open while nothing happened and 25 while both families were
	// being repaired; its two servers may hold 256 connections (pkg/connlimit). The rest is in reserve.
	Least = 512
	// hopeless is less than what the runtime and the initialization of packages need, with some to spare: 8 were seen to be
	// enough.
	hopeless = 12
)

// Err says that there are less than Least, and what can be done. A limit that can't be read is no error.
var Err error

// init sets the soft limit to Limit, and the hard limit if that is lower and the kernel permits it (CAP_SYS_RESOURCE). It
// does so even where they are high enough: the runtime has raised the soft limit for itself, and would give the commands
// the one from before, which may be too low for them (syscall/rlimit.go).
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

// The socket probe: a call of our own, to see it refused.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Ask connects a socket to the endpoint as a pod would, and reports whether that was refused. It is an error if the process is
// not in a cgroup below the pods' directory. If the kernel does not run the family, the error is EAFNOSUPPORT.
func Ask(f imds.Family, directory string) (refused bool, err error) {
	if err := isBelow(directory); err != nil {
		return false, fmt.Errorf("probing %s as a pod would: %w", f, err)
	}
	const port = 80
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: f.Endpoint().Addr().As16()})
	if f == imds.IPv4 {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: f.Endpoint().Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("opening an %s socket: %w", f, err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, probeMark); err != nil {
		return false, fmt.Errorf("marking an %s socket: %w", f, err)
	}
	switch err := unix.Connect(fd, to); {
	case errors.Is(err, unix.EPERM):
		return true, nil
	case err == nil || errors.Is(err, unix.EINPROGRESS):
		return false, nil
	default: // let through, at least by the programs; it failed for another reason, such as a missing route
		return false, fmt.Errorf("connecting an %s socket: %w", f, err)
	}
}

// isBelow returns an error unless the process is in a cgroup below the directory. /proc/self/cgroup doesn't say so inside a
// cgroup namespace; but cgroup.procs lists a process under its number in the reader's PID namespace, and as 0 if the reader
// can't see it.
func isBelow(directory string) error {
	found, self := false, strconv.Itoa(os.Getpid())
	err := walk(directory, func(path string, _ uint64) error {
		processes, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if found = err == nil && slices.Contains(strings.Fields(string(processes)), self); found {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("looking for this process's cgroup: %w", err)
	}
	if !found {
		return fmt.Errorf("this process is not in a cgroup below %s", directory)
	}
	return nil
}

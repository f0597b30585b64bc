// A call of our own, to see it refused.

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

// Ask connects a socket to the endpoint as a pod would, and reports whether that was refused. The process has to be in a cgroup
// below the pods' directory; that it is not is an error. Of a kernel that doesn't run the family the error is EAFNOSUPPORT.
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
	default: // let through, by the programs at least, and then there was no route or the like
		return false, fmt.Errorf("connecting an %s socket: %w", f, err)
	}
}

// isBelow finds the process in a cgroup's tree. Where it is, /proc/self/cgroup does not tell in a cgroup namespace of its own; but
// a process has its number of the reader's PID namespace in cgroup.procs, and one that the reader can't see is 0 there.
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

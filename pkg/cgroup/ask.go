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
// below the pods' directory; that it is not is an error.
func Ask(f imds.Family, directory string) (refused bool, err error) {
	if err := isBelow(directory); err != nil {
		return false, fmt.Errorf("asking %s as a pod would: %w", f, err)
	}
	const port = 80
	family, to := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: port, Addr: f.Endpoint().Addr().As16()})
	if f == imds.IPv4 {
		family, to = unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: f.Endpoint().Addr().As4()}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, fmt.Errorf("opening a socket of %s: %w", f, err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, probeMark); err != nil {
		return false, fmt.Errorf("marking a socket of %s: %w", f, err)
	}
	return errors.Is(unix.Connect(fd, to), unix.EPERM), nil
}

// isBelow finds the process in a cgroup's tree. Where it is, /proc/self/cgroup does not tell in a cgroup namespace of its own; but
// a process has its number of the reader's PID namespace in cgroup.procs, and one that the reader can't see is 0 there.
func isBelow(directory string) error {
	found := errors.New("found")
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err != nil || !entry.IsDir() {
			return nil // it has gone
		}
		processes, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err == nil && slices.Contains(strings.Fields(string(processes)), strconv.Itoa(os.Getpid())) {
			return found
		}
		return nil
	})
	switch {
	case errors.Is(err, found):
		return nil
	case err != nil:
		return fmt.Errorf("looking for its own cgroup: %w", err)
	}
	return fmt.Errorf("this process is in no cgroup below %s", directory)
}

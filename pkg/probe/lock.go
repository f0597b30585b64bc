// That one probe is under way at a time.

package probe

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// lockName is an abstract address (unix(7)): it belongs to the network namespace, needs no file system, and is free again when its
// process ends, however that ends.
const lockName = "@imds-guard/probe"

// lockPatience is for how long another probe is waited for. It takes less than a second.
const lockPatience = 3 * time.Second

func lock() (unlock func(), err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening a socket: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Bind(fd, &unix.SockaddrUnix{Name: lockName})
		if err == nil {
			return func() { unix.Close(fd) }, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || time.Now().After(deadline) {
			unix.Close(fd)
			return nil, fmt.Errorf("waiting for another probe to end: %w", err)
		}
	}
}

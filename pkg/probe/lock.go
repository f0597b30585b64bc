// Making sure that only one probe runs at a time.

package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockFile is in the directory that the agent shares with `imds-guard check`. The lock is released when its process ends,
// however it ends.
const lockFile = "/run/imds-guard/.probe"

// lockPatience is how long to wait for another probe, which takes less than a second.
const lockPatience = 3 * time.Second

func lock() (unlock func(), err error) {
	if err := os.MkdirAll(filepath.Dir(lockFile), 0o755); err != nil {
		return nil, fmt.Errorf("making a directory for the probes' lock: %w", err)
	}
	f, err := os.OpenFile(lockFile, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("opening the probes' lock: %w", err)
	}
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("waiting for another probe to end: %w", err)
		}
	}
}

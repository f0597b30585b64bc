// Whether an agent runs in this network namespace. It is told by a lock on the record's directory, which the kernel gives
// back however the agent ends, and which leaves no file behind.

package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrAgentRuns is returned to a cleanup whose work an agent would undo.
var ErrAgentRuns = errors.New("an agent is running on this node and would put the rules back; stop it first")

// ErrCleanupRuns is returned to an agent whose record a cleanup would remove.
var ErrCleanupRuns = errors.New("a cleanup is running on this node")

// MarkRunning says by a lock, until the process ends, that an agent runs. There may be several: an old and a new one.
func (r Record) MarkRunning() error {
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return fmt.Errorf("marking that an agent runs: %w", err)
	}
	return lock(r.dir, unix.LOCK_SH, ErrCleanupRuns)
}

// MarkCleaning says by a lock, until the process ends, that a cleanup runs. It fails with ErrAgentRuns while an agent has
// marked that it does.
func (r Record) MarkCleaning() error {
	err := lock(r.dir, unix.LOCK_EX, ErrAgentRuns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no agent has been here
	}
	return err
}

// lock never waits. The descriptor stays open for good, and is not passed on to commands.
func lock(dir string, how int, taken error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("locking %s: %w", dir, err)
	}
	err = unix.Flock(fd, how|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	_ = unix.Close(fd)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return taken
	}
	return fmt.Errorf("locking %s: %w", dir, err)
}

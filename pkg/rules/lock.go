// Whether an agent is running in this network namespace. It is marked by a lock on the record's directory, which the kernel
// releases however the agent ends, and which leaves no file behind.

package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrAgentRuns is returned to a cleanup whose work a running agent would undo.
var ErrAgentRuns = errors.New("an agent is running on this node and would put the rules back; stop it first")

// ErrCleanupRuns is returned to an agent whose record a running cleanup would remove.
var ErrCleanupRuns = errors.New("a cleanup is running on this node")

// MarkRunning takes a lock, until the process ends, to mark that an agent is running. There may be several: an old and a new
// one.
func (r Record) MarkRunning() error {
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		return fmt.Errorf("marking that an agent runs: %w", err)
	}
	return lock(r.dir, unix.LOCK_SH, ErrCleanupRuns)
}

// MarkCleaning takes a lock, until the process ends, to mark that a cleanup is running. It fails with ErrAgentRuns while an
// agent holds its mark.
func (r Record) MarkCleaning() error {
	err := lock(r.dir, unix.LOCK_EX, ErrAgentRuns)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no agent has been here
	}
	return err
}

// lock never waits. The descriptor stays open until the process ends, and is not passed on to commands.
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

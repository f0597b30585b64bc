// The record that one run of the program leaves for the next, on this node and since it booted: the interface patterns for
// which rules were ever installed, so that cleanup can undo all of it after the flags have changed (the rules themselves carry
// no mark, and somebody else may have written one that looks the same for another interface); and the backend in use, which
// can't always be found out otherwise.

package rules

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

	"github.com/imds-guard/imds-guard/internal/wholefile"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// RecordDir is where records are kept. Like the rules, they don't survive a reboot.
const RecordDir = "/run/imds-guard"

// Record is the record of one network namespace. The node's own and that of a container in which somebody runs another agent
// may share /run.
type Record struct{ dir string }

// NewRecord returns the record of the calling thread's network namespace, below a directory. It does not create or read
// anything yet.
func NewRecord(below string) (Record, error) {
	var s unix.Stat_t
	const namespace = "/proc/thread-self/ns/net"
	if err := unix.Stat(namespace, &s); err != nil {
		return Record{}, fmt.Errorf("identifying the network namespace (%s): %w", namespace, err)
	}
	return Record{filepath.Join(below, strconv.FormatUint(s.Ino, 10))}, nil
}

func (r Record) patternsFile() string { return filepath.Join(r.dir, "interface-patterns") }
func (r Record) backendFile() string  { return filepath.Join(r.dir, "backend") }

// Attempts is the file of the attempts that the agent has counted, and Socket the socket on which the agent answers.
func (r Record) Attempts() string { return filepath.Join(r.dir, "attempts.json") }
func (r Record) Socket() string   { return filepath.Join(r.dir, "agent.sock") }

// Remember adds patterns to the record, and notes the backend in use.
func (r Record) Remember(patterns []ifpattern.Pattern, b Backend) error {
	known, err := r.Patterns()
	if err != nil {
		return err
	}
	var text strings.Builder
	all := slices.Clone(known)
	for _, p := range patterns {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	for _, p := range all {
		text.WriteString(p.String() + "\n")
	}
	if len(all) > len(known) {
		if err := r.write(r.patternsFile(), text.String()); err != nil {
			return err
		}
	}
	if recorded, err := r.Backend(); err == nil && recorded == b {
		return nil
	}
	return r.write(r.backendFile(), string(b)+"\n")
}

func (r Record) write(file, text string) error {
	if err := wholefile.Write(file, []byte(text), 0o644); err != nil {
		return fmt.Errorf("recording what is installed: %w", err)
	}
	return nil
}

// read returns a file's text, empty if there is none.
func (r Record) read(file string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading the record of what is installed: %w", err)
	}
	return string(text), nil
}

// Patterns returns the recorded patterns, none if there is no record. Invalid ones are left out, so that nothing can make
// cleanup touch a rule that imds-guard can't have written.
func (r Record) Patterns() (patterns []ifpattern.Pattern, err error) {
	text, err := r.read(r.patternsFile())
	for line := range strings.Lines(text) {
		if p, err := ifpattern.Parse(strings.TrimSpace(line)); err == nil {
			patterns = append(patterns, p)
		}
	}
	return patterns, err
}

// Backend returns the recorded backend, empty if there is none.
func (r Record) Backend() (Backend, error) {
	text, err := r.read(r.backendFile())
	if b := Backend(strings.TrimSpace(text)); b == NFT || b == Legacy {
		return b, err
	}
	return "", err
}

// Forget removes the record.
func (r Record) Forget() error {
	for _, file := range []string{r.patternsFile(), r.backendFile()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the record of what was installed: %w", err)
		}
	}
	return nil
}

// ForgetAttempts removes what the agent has counted, and the socket of an agent that was killed.
func (r Record) ForgetAttempts() error {
	for _, file := range []string{r.Attempts(), wholefile.Next(r.Attempts()), r.Socket()} {
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing what was counted: %w", err)
		}
	}
	return nil
}

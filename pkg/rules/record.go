// The record of which interface patterns rules were ever installed for, so that cleanup can undo all of it after the
// flags have changed. The rules themselves can't tell: they carry no mark, and somebody else may have written one that
// looks the same for another interface.
package rules

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// RecordDir is where the record is kept. Like the rules, it ends with the node's uptime.
const RecordDir = "/run/imds-guard"

func recordFile(dir string) string { return filepath.Join(dir, "interface-patterns") }

// Remember adds patterns to the record.
func Remember(dir string, patterns []ifpattern.Pattern) error {
	known, err := Remembered(dir)
	if err != nil {
		return err
	}
	all := slices.Clone(known)
	for _, p := range patterns {
		if !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	if len(all) == len(known) {
		return nil
	}
	var text strings.Builder
	for _, p := range all {
		text.WriteString(p.String() + "\n")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("recording the interface patterns: %w", err)
	}
	// By way of a second file, so that a full disk can't leave half a record.
	file := recordFile(dir)
	if err := os.WriteFile(file+".new", []byte(text.String()), 0o644); err != nil {
		return fmt.Errorf("recording the interface patterns: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("recording the interface patterns: %w", err)
	}
	return nil
}

// Remembered returns the recorded patterns, none if there is no record. What is not a pattern is left out: nothing may
// make cleanup touch a rule that imds-guard can't have written.
func Remembered(dir string) ([]ifpattern.Pattern, error) {
	text, err := os.ReadFile(recordFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the record of interface patterns: %w", err)
	}
	var patterns []ifpattern.Pattern
	for line := range strings.Lines(string(text)) {
		if p, err := ifpattern.Parse(strings.TrimSpace(line)); err == nil {
			patterns = append(patterns, p)
		}
	}
	return patterns, nil
}

// Forget removes the record.
func Forget(dir string) error {
	if err := os.Remove(recordFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the record of interface patterns: %w", err)
	}
	return nil
}

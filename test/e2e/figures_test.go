//go:build e2e

// What was measured on the way, printed after the last test and, if asked for, written to a file.

package e2e

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
)

var figures collector

type collector struct {
	mu   sync.Mutex
	rows []string
}

// add notes a figure with its unit.
func (c *collector) add(t *testing.T, what, value string) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rows = append(c.rows, fmt.Sprintf("| %s | %s | `%s` |", what, value, t.Name()))
	progress("%s: measured: %s: %s", t.Name(), what, value)
}

// write prints the table, and writes it to the file if there is a name.
func (c *collector) write(name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.rows) == 0 {
		return nil
	}
	table := "| figure | value | test |\n|---|---|---|\n" + strings.Join(c.rows, "\n") + "\n"
	fmt.Print(table)
	if name == "" {
		return nil
	}
	if err := os.WriteFile(name, []byte(table), 0o644); err != nil {
		return fmt.Errorf("writing the figures: %w", err)
	}
	return nil
}

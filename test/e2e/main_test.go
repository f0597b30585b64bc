//go:build e2e

// The node's life around all tests.

package e2e

import (
	"fmt"
	"os"
	"testing"
	"time"
)

// node is the one that all tests use.
var node *Node

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if node, err = newNode(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer node.Stop()
	progress("starting the node %s", node.Name)
	started := time.Now()
	if err := node.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		node.dump(os.Stderr)
		return 1
	}
	progress("the node is ready, after %.0f s", time.Since(started).Seconds())

	code := m.Run()
	if err := figures.write(os.Getenv("E2E_FIGURES")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// progress tells somebody who waits what is going on.
func progress(format string, arguments ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", arguments...)
}

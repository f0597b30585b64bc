//go:build linux

// Nodes for tests.

package testnode

// TB is the part of testing.TB that a node needs.
type TB interface {
	Helper()
	Cleanup(fn func())
	Error(args ...any)
	Fatal(args ...any)
}

// Make makes a node without pods for a test, and closes it at the test's end.
func Make(t TB) *Node {
	t.Helper()
	n, err := New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

package asynclog

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
)

// While nobody reads, Write does not wait. Once somebody reads again, the backlog comes in order, followed by how much was
// lost.
func TestNobodyReads(t *testing.T) {
	r, to := io.Pipe()
	w := New(to)
	const lines = 3 * backlog
	for i := range lines {
		fmt.Fprintf(w, "line %d\n", i)
	}
	read := make(chan string)
	go func() {
		text, _ := io.ReadAll(r)
		read <- string(text)
	}()
	w.Close(time.Minute)
	to.Close()
	got, next, lost := strings.Split(strings.TrimSpace(<-read), "\n"), 0, 0
	for _, line := range got {
		if n, err := fmt.Sscanf(line, "imds-guard: %d log lines were dropped", &lost); n == 1 && err == nil {
			continue
		}
		var i int
		if _, err := fmt.Sscanf(line, "line %d", &i); err != nil || i != next {
			t.Fatalf("line %d is %q", next, line)
		}
		next++
	}
	if next+lost != lines || lost == 0 {
		t.Errorf("%d lines came, %d were said to be lost, of %d", next, lost, lines)
	}
}

// Close waits for a reader no longer than it is told.
func TestCloseWithoutAReader(t *testing.T) {
	_, to := io.Pipe()
	w := New(to)
	fmt.Fprintln(w, "a line")
	w.Close(time.Millisecond)
	to.Close()
	<-w.done
}

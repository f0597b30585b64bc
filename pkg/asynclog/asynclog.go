// Package asynclog keeps a program running when nobody reads its log: a container runtime hangs, or a disk behind a pipe is
// full.
package asynclog

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// backlog is how many lines may wait to be written. At some 300 bytes each they take little of the agent's memory.
const backlog = 1024

// Writer passes lines on to another writer, in order, from a goroutine of its own. Write never blocks: lines that find the
// backlog full are dropped, and their number is written as soon as there is room.
type Writer struct {
	lines   chan []byte
	dropped atomic.Int64
	closing chan struct{}
	done    chan struct{}
}

// New makes a writer that ends with Close.
func New(to io.Writer) *Writer {
	w := &Writer{lines: make(chan []byte, backlog), closing: make(chan struct{}), done: make(chan struct{})}
	go w.run(to)
	return w
}

// Write implements io.Writer. It never fails, and takes one line.
func (w *Writer) Write(line []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.dropped.Add(1)
	}
	return len(line), nil
}

// Close returns when every line so far is written, or after the given patience. Later lines are lost.
func (w *Writer) Close(patience time.Duration) {
	close(w.closing)
	select {
	case <-w.done:
	case <-time.After(patience):
	}
}

func (w *Writer) run(to io.Writer) {
	defer close(w.done)
	for {
		select {
		case line := <-w.lines:
			w.write(to, line)
		case <-w.closing:
			for {
				select {
				case line := <-w.lines:
					w.write(to, line)
				default:
					return
				}
			}
		}
	}
}

// write writes a line, and then how many were lost before it was taken. (If that fails, there is nobody to tell.)
func (w *Writer) write(to io.Writer, line []byte) {
	_, _ = to.Write(line)
	if n := w.dropped.Swap(0); n > 0 {
		_, _ = fmt.Fprintf(to, "imds-guard: %d log lines were dropped: nobody read them in time\n", n)
	}
}

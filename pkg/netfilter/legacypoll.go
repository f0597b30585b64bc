// The watcher of legacy iptables, for which the kernel sends no notifications.

package netfilter

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

const (
	// lockFile is opened by every legacy command since iptables 1.4.20, and closed when the command is done
	// (iptables/xshared.c).
	lockFile = "/run/xtables.lock"
	// The summaries are read when a process closes the lock file and, in addition, every pollBehindLock; while the lock file
	// can't be watched, every pollAlone. Each wake-up costs some 0.1 ms of CPU time, the reading itself a microsecond.
	pollBehindLock = 200 * time.Millisecond
	pollAlone      = 100 * time.Millisecond
)

// LegacyPoll follows the summaries of the legacy filter tables.
type LegacyPoll struct {
	families []imds.Family
	wake     func(...imds.Family)
	lost     func(error)
	on       chan bool
}

// NewLegacyPoll makes a poll that is off, since reading a summary would load the table where legacy is not in use. wake is
// called with the family whose summary has changed, and without one when the poll starts; lost is called when a summary can't
// be read, once until it can be read again.
func NewLegacyPoll(wake func(...imds.Family), lost func(error), families ...imds.Family) *LegacyPoll {
	return &LegacyPoll{families: families, wake: wake, lost: lost, on: make(chan bool, 1)}
}

// Set turns the poll on or off. While it is off it costs nothing. It is for one goroutine to call.
func (p *LegacyPoll) Set(on bool) {
	select {
	case <-p.on: // discard an earlier setting that was not taken yet
	default:
	}
	p.on <- on
}

// Run polls until ctx ends.
func (p *LegacyPoll) Run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case on := <-p.on:
			for on && ctx.Err() == nil {
				on = p.follow(ctx)
			}
		}
	}
}

// follow polls until ctx ends or Set is called again, and reports whether the poll is still on.
func (p *LegacyPoll) follow(ctx context.Context) (on bool) {
	var tables []*polled
	for _, f := range p.families {
		tables = append(tables, &polled{family: f})
	}
	var lock lockWatch
	defer func() {
		for _, t := range tables {
			if t.socket != nil {
				t.socket.Close()
			}
		}
		lock.close()
	}()
	p.wake()
	// The thread sleeps in the kernel. A Ticker would wake several threads of the Go runtime at each tick, which costs twice
	// the CPU time.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for {
		lock.wait()
		select {
		case <-ctx.Done():
			return false
		case on := <-p.on:
			return on
		default:
		}
		for _, t := range tables {
			p.poll(t)
		}
	}
}

// polled is one family's filter table as it was last seen.
type polled struct {
	family imds.Family
	socket *LegacySocket // nil until it can be opened
	last   LegacyInfo
	lost   bool
}

func (t *polled) read() (info LegacyInfo, err error) {
	if t.socket == nil {
		if t.socket, err = NewLegacySocket(t.family); err != nil {
			t.socket = nil
			return info, err
		}
	}
	return t.socket.Info("filter")
}

func (p *LegacyPoll) poll(t *polled) {
	info, err := t.read()
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return // a kernel without the family has nothing to follow
	}
	if err != nil {
		if !t.lost {
			p.lost(err)
		}
		t.lost = true
		return
	}
	if t.lost || info != t.last {
		t.last, t.lost = info, false
		p.wake(t.family)
	}
}

// lockWatch waits for a process to close the lock file. That only says when to look: our own commands close it too.
type lockWatch struct {
	file int // an inotify instance; 0 if there is none
}

// wait returns when a process has closed the lock file, or when it is time to poll.
func (l *lockWatch) wait() {
	if l.file == 0 && l.open() != nil {
		_, _ = unix.Poll(nil, int(pollAlone.Milliseconds()))
		return
	}
	fds := []unix.PollFd{{Fd: int32(l.file), Events: unix.POLLIN}}
	if n, err := unix.Poll(fds, int(pollBehindLock.Milliseconds())); err != nil || n == 0 {
		return
	}
	if l.gone() {
		l.close()
	}
}

func (l *lockWatch) open() error {
	file, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("making an inotify instance: %w", err)
	}
	if _, err := unix.InotifyAddWatch(file, lockFile, unix.IN_CLOSE|unix.IN_ATTRIB|unix.IN_DELETE_SELF); err != nil {
		unix.Close(file)
		return fmt.Errorf("watching %s: %w", lockFile, err)
	}
	l.file = file
	return nil
}

// gone reads the pending events and reports whether the file may have been removed and replaced by another of the same name.
// (Removing the last link changes an attribute, the number of links.)
func (l *lockWatch) gone() bool {
	var buffer [4096]byte
	gone := false
	for {
		n, err := unix.Read(l.file, buffer[:])
		if err != nil || n < unix.SizeofInotifyEvent {
			return gone || err != nil && !errors.Is(err, unix.EAGAIN)
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			event := (*unix.InotifyEvent)(unsafe.Pointer(&buffer[at]))
			gone = gone || event.Mask&unix.IN_CLOSE == 0
			at += unix.SizeofInotifyEvent + int(event.Len)
		}
	}
}

func (l *lockWatch) close() {
	if l.file != 0 {
		unix.Close(l.file)
	}
	l.file = 0
}

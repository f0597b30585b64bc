// Who asks, as counted by the programs.

package cgroup

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Verdict is what became of an attempt.
type Verdict uint64

const (
	// Blocked: the call was refused.
	Blocked Verdict = 1
	// Audited: it was let through, and would have been refused in another mode.
	Audited Verdict = 2
	// requested: this is not a call, but the beginning of a request.
	requested Verdict = 3
)

// Asker identifies who makes attempts, and what becomes of them.
type Asker struct {
	// Top and Second are the ids of the process's cgroups one and two levels below that of all pods. One of them is a pod's.
	// For a process that is not below it, Top is 0 and Second is its own cgroup.
	Top, Second uint64
	Verdict     Verdict
}

// MarshalText implements encoding.TextMarshaler, so that an Asker can be a key in JSON.
func (a Asker) MarshalText() ([]byte, error) {
	return fmt.Appendf(nil, "%d/%d/%d", a.Top, a.Second, a.Verdict), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Asker) UnmarshalText(text []byte) error {
	if _, err := fmt.Sscanf(string(text), "%d/%d/%d", &a.Top, &a.Second, &a.Verdict); err != nil {
		return fmt.Errorf("parsing the asker %q: %w", text, err)
	}
	return nil
}

// Count is how often an asker has asked, and when last. A counter starts over, with another Began, when the map is recreated,
// or when an asker that had not asked for long was evicted to make room.
type Count struct {
	Asker
	Attempts uint64
	Last     time.Time
	// Began is when the counter started, by the kernel's clock, in nanoseconds.
	Began uint64
}

// Attempt is an asker's first attempt within a second.
type Attempt struct {
	Asker
	// Command is the process's name, at most 15 bytes; empty if the agent lacks CAP_PERFMON. A process can give itself any
	// name.
	Command string
}

// ErrNoMaps says that the layer is not in force yet, so that the maps in which it counts don't exist.
var ErrNoMaps = errors.New("the maps of the cgroup layer do not exist yet")

func openPinned(what, path string, spec ebpf.MapSpec) (*ebpf.Map, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoMaps
	}
	m, why := openMap(what, path, spec)
	if why != "" {
		return nil, errors.New(why)
	}
	return m, nil
}

// Counts returns who has asked. whole is false if some may be missing because the map changed during the reading.
func Counts() (counts []Count, whole bool, err error) {
	m, err := openPinned("the map of attempts", attemptsPin(), attemptsSpec)
	if err != nil {
		return nil, false, err
	}
	defer m.Close()
	now, monotonic := time.Now(), uptime()
	var key [keySize / 8]uint64
	var value [valueSize / 8]uint64
	all := m.Iterate()
	for all.Next(&key, &value) {
		if asker := (Asker{key[0], key[1], Verdict(key[2])}); asker.Verdict != requested {
			last := now.Add(time.Duration(value[valueLast/8]) - monotonic)
			counts = append(counts, Count{asker, value[valueCount/8], last, value[valueBegan/8]})
		}
	}
	switch err := all.Err(); {
	case errors.Is(err, ebpf.ErrIterationAborted):
		return counts, false, nil
	case err != nil:
		return nil, false, fmt.Errorf("reading the map of attempts: %w", err)
	}
	return counts, true, nil
}

// uptime reads the clock of bpf_ktime_get_ns.
func uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// FollowAttempts calls told with attempts as they are made, at most one a second for each asker, until ctx ends or the layer
// has recreated the map.
func FollowAttempts(ctx context.Context, told func(Attempt)) error {
	return follow(ctx, "the ring buffer of attempts", newsPin(), newsSpec, func(raw []byte) {
		if len(raw) == -event {
			told(Attempt{askerOf(raw), unix.ByteSliceToString(raw[keySize:])})
		}
	})
}

// askerOf reads a key.
func askerOf(raw []byte) Asker {
	word := binary.NativeEndian.Uint64
	return Asker{word(raw), word(raw[8:]), Verdict(word(raw[16:]))}
}

// FollowRequests does the same with the beginnings of requests from askers that only audit mode lets through; at most
// requestsMost within requestsEvery for each asker. shown must not keep the bytes it is given, which may hold secrets and are
// overwritten when it returns.
func FollowRequests(ctx context.Context, shown func(by Asker, beginning []byte)) error {
	return follow(ctx, "the ring buffer of requests", beginningsPin(), beginningsSpec, func(raw []byte) {
		if len(raw) != shownHead+mostShown {
			return
		}
		defer clear(raw)
		shown(askerOf(raw), raw[shownHead:shownHead+min(binary.NativeEndian.Uint64(raw[keySize:]), mostShown)])
	})
}

// checkEvery is how often to check that a map is still the one being written to.
const checkEvery = 10 * time.Second

func follow(ctx context.Context, what, path string, spec ebpf.MapSpec, record func([]byte)) error {
	m, err := openPinned(what, path, spec)
	if err != nil {
		return err
	}
	defer m.Close()
	r, err := ringbuf.NewReader(m)
	if err != nil {
		return fmt.Errorf("reading %s: %w", what, err)
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.Close() })()
	var got ringbuf.Record
	for {
		r.SetDeadline(time.Now().Add(checkEvery))
		switch err := r.ReadInto(&got); {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if same, err := isSame(m, path, what, spec); err != nil || !same {
				return cmp.Or(err, ErrNoMaps)
			}
		case err != nil:
			return fmt.Errorf("reading %s: %w", what, err)
		default:
			record(got.RawSample)
		}
	}
}

// isSame reports whether a map is the pinned one.
func isSame(m *ebpf.Map, path, what string, spec ebpf.MapSpec) (bool, error) {
	now, err := openPinned(what, path, spec)
	if err != nil {
		return false, err
	}
	defer now.Close()
	before, err := m.Info()
	if err != nil {
		return false, err
	}
	after, err := now.Info()
	if err != nil {
		return false, err
	}
	a, _ := before.ID()
	b, _ := after.ID()
	return a == b, nil
}

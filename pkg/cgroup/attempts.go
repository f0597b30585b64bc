// Who asks, as the programs have counted it.

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
	// requested: not a call, but the beginning of a request.
	requested Verdict = 3
)

// Asker names who makes attempts, and what becomes of them.
type Asker struct {
	// Top and Second are the ids of the cgroups that the process is in, one and two levels below that of all pods. One of them is a pod's.
	// A process that is not below has no Top, and in Second its own.
	Top, Second uint64
	Verdict     Verdict
}

// MarshalText implements encoding.TextMarshaler, by which JSON has it as a key.
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

// Count is how often somebody has asked, and when last. A counter starts anew, with another Began, when the map is made anew, or when
// somebody who had not asked for long has made room for others.
type Count struct {
	Asker
	Attempts uint64
	Last     time.Time
	// Began is by the clock of the kernel, in nanoseconds.
	Began uint64
}

// Attempt is one of somebody's first within a second.
type Attempt struct {
	Asker
	// Command is the process's name, of at most 15 bytes; empty if the agent has no CAP_PERFMON. Any process gives itself whatever name it
	// likes.
	Command string
}

// ErrNoMaps says that the layer has yet to be put in force: what it counts in is not there.
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

// Counts returns who has asked. whole is false if somebody may be missing, because others asked meanwhile.
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

// uptime is the clock of bpf_ktime_get_ns.
func uptime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// FollowAttempts calls told with attempts as they are made, of each asker at most one a second, until ctx ends or the layer has made another
// map for them.
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

// FollowRequests does the same with the beginnings of requests that somebody sends who is let through in audit mode alone; of each at most
// requestsMost within requestsEvery. shown must not keep what it is given, which may hold secrets and is overwritten when it returns.
func FollowRequests(ctx context.Context, shown func(by Asker, beginning []byte)) error {
	return follow(ctx, "the ring buffer of requests", beginningsPin(), beginningsSpec, func(raw []byte) {
		if len(raw) != shownHead+mostShown {
			return
		}
		defer clear(raw)
		shown(askerOf(raw), raw[shownHead:shownHead+min(binary.NativeEndian.Uint64(raw[keySize:]), mostShown)])
	})
}

// checkEvery is how often to see whether a map is still the one that is written to.
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

// isSame reports whether a map is the one that is pinned.
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

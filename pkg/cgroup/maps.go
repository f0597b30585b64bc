// The maps that the programs read and count in; they are pinned as well.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// mostPods is how many pods a map has room for. A node on EKS has at most 737 pods (awslabs/amazon-eks-ami, eni-max-pods.txt),
// and the entry of a pod that is gone stays until the next list is written.
const mostPods = 4096

// mostAskers is how many askers the map has room for. Before Linux 6.16 (commit d4adf1c9ee77) each processor reserved 128
// entries for itself, and one that got no share immediately evicted the entry it had just counted.
func mostAskers() uint32 {
	processors, err := ebpf.PossibleCPU()
	if err != nil {
		processors = runtime.NumCPU()
	}
	return mostPods + 128*uint32(processors)
}

// The sizes of the ring buffers, in bytes: hundreds of events, and of beginnings of requests.
const (
	newsSize       = 1 << 16
	beginningsSize = 1 << 18
)

// The kinds of map. Each family has its own refused; both families share the others.
var (
	refusedSpec    = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	attemptsSpec   = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.LRUHash, KeySize: keySize, ValueSize: valueSize, MaxEntries: mostAskers()}
	newsSpec       = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.RingBuf, MaxEntries: newsSize}
	beginningsSpec = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.RingBuf, MaxEntries: beginningsSize}
	allowedSpec    = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: mostPods}
)

func counterOf(f imds.Family) string { return filepath.Join(pins(), string(f)+"-refused") }

func attemptsPin() string { return filepath.Join(pins(), "attempts") }

func newsPin() string { return filepath.Join(pins(), "attempts-news") }

func beginningsPin() string { return filepath.Join(pins(), "requests") }

func allowedPin() string { return filepath.Join(pins(), "host-allowed") }

// maps are the maps of a family's programs.
type maps struct {
	// refused counts the calls that were refused, under the only key.
	refused *ebpf.Map
	// attempts counts attempts by asker, news carries events about some of them and, in audit mode, beginnings carries the
	// beginnings of requests: see Attempt. The last is nil in enforce mode.
	attempts, news, beginnings *ebpf.Map
	// allowed has the ids of the cgroups of hostNetwork pods that are let through and, once that is known, listed. It is nil if
	// all are let through.
	allowed *ebpf.Map
}

// listed is a key of allowed that no cgroup has: if it is there, pods that are not in the list are not let through.
const listed = uint64(0)

// mapPin is one map, with its name for messages and its pin.
type mapPin struct {
	to   **ebpf.Map
	name string
	path string
	spec ebpf.MapSpec
}

// wanted lists the maps that a policy needs.
func (m *maps) wanted(f imds.Family, h policy.HostNetwork, auditOnly bool) []mapPin {
	list := []mapPin{
		{&m.refused, "the counter", counterOf(f), refusedSpec},
		{&m.attempts, "the map of attempts", attemptsPin(), attemptsSpec},
		{&m.news, "the ring buffer of attempts", newsPin(), newsSpec},
	}
	if h != policy.Allow {
		list = append(list, mapPin{&m.allowed, "the list of hostNetwork pods", allowedPin(), allowedSpec})
	}
	if auditOnly {
		list = append(list, mapPin{&m.beginnings, "the ring buffer of requests", beginningsPin(), beginningsSpec})
	}
	return list
}

// of lists the maps that a hook's program uses.
func (m *maps) of(h hook) []*ebpf.Map {
	if h.watches() {
		return []*ebpf.Map{m.attempts, m.beginnings}
	}
	return slices.DeleteFunc([]*ebpf.Map{m.refused, m.attempts, m.news, m.allowed}, func(m *ebpf.Map) bool { return m == nil })
}

func (m *maps) close() {
	for _, one := range []*ebpf.Map{m.refused, m.attempts, m.news, m.beginnings, m.allowed} {
		if one != nil {
			one.Close()
		}
	}
}

// are reports whether a hook's maps are those with the given ids.
func (m *maps) are(h hook, ids []ebpf.MapID) (bool, error) {
	all := m.of(h)
	for _, one := range all {
		is, err := one.Info()
		if err != nil {
			return false, fmt.Errorf("inspecting a map: %w", err)
		}
		if id, _ := is.ID(); !slices.Contains(ids, id) {
			return false, nil
		}
	}
	return len(ids) == len(all), nil
}

// openMaps opens the pinned maps, or says what is missing.
func openMaps(f imds.Family, h policy.HostNetwork, auditOnly bool) (m *maps, why string) {
	m = &maps{}
	for _, p := range m.wanted(f, h, auditOnly) {
		if *p.to, why = openMap(p.name, p.path, p.spec); why != "" {
			m.close()
			return nil, why
		}
	}
	return m, ""
}

// openMap opens one map, or says why there is none. Anything else in its place counts as none.
func openMap(what, path string, spec ebpf.MapSpec) (m *ebpf.Map, why string) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, what + " is not pinned"
	case err != nil:
		return nil, fmt.Sprintf("%s can't be opened: %v", what, err)
	case m.Type() != spec.Type || m.KeySize() != spec.KeySize || m.ValueSize() != spec.ValueSize || m.MaxEntries() != spec.MaxEntries || m.Flags() != spec.Flags:
		m.Close()
		return nil, what + " is a different map"
	}
	return m, ""
}

// making keeps the two families from both creating the maps that they share.
var making sync.Mutex

// makeMaps creates the missing maps, and pins them.
func makeMaps(f imds.Family, h policy.HostNetwork, auditOnly bool) (m *maps, err error) {
	making.Lock()
	defer making.Unlock()
	m = &maps{}
	for _, p := range m.wanted(f, h, auditOnly) {
		if *p.to, err = makeMap(p.path, p.spec); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

func makeMap(path string, spec ebpf.MapSpec) (*ebpf.Map, error) {
	if m, why := openMap("", path, spec); why == "" {
		return m, nil
	}
	m, err := ebpf.NewMap(&spec)
	if err != nil {
		return nil, fmt.Errorf("making the map %s: %w", filepath.Base(path), err)
	}
	if err := pin(m, path); err != nil {
		m.Close()
		return nil, fmt.Errorf("pinning the map %s: %w", filepath.Base(path), err)
	}
	return m, nil
}

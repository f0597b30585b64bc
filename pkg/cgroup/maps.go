// What the programs read and count in, which is pinned as well.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/cilium/ebpf"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// mostPods is how many pods a map has room for. A node has at most 737 on EKS (awslabs/amazon-eks-ami, eni-max-pods.txt), and a
// cgroup that is gone makes room only when the next list is written.
const mostPods = 4096

// The kinds of map. Of refused each family has one; the others are about pods in the node's network, and both families'.
var (
	refusedSpec = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}
	allowedSpec = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: mostPods}
	askedSpec   = ebpf.MapSpec{Name: "imds_guard", Type: ebpf.LRUHash, KeySize: 8, ValueSize: 8, MaxEntries: mostPods}
)

func counterOf(f imds.Family) string { return filepath.Join(pins(), string(f)+"-refused") }

func allowedPin() string { return filepath.Join(pins(), "host-allowed") }

func askedPin() string { return filepath.Join(pins(), "host-asked") }

// maps are those of a family's programs.
type maps struct {
	// refused counts the calls that were refused, under the only key.
	refused *ebpf.Map
	// allowed has the ids of the cgroups of those pods in the node's network that are let through, and listed, if that is known; asked
	// counts the calls of others, by the id of their process's cgroup. Both are nil if all are let through.
	allowed, asked *ebpf.Map
}

// listed is a key of allowed that no cgroup has: with it, who is not in the list is not let through.
const listed = uint64(0)

func (m *maps) all() []*ebpf.Map {
	return slices.DeleteFunc([]*ebpf.Map{m.refused, m.allowed, m.asked}, func(m *ebpf.Map) bool { return m == nil })
}

func (m *maps) close() {
	for _, one := range m.all() {
		one.Close()
	}
}

// are reports whether these are the maps with the given ids.
func (m *maps) are(ids []ebpf.MapID) (bool, error) {
	for _, one := range m.all() {
		is, err := one.Info()
		if err != nil {
			return false, fmt.Errorf("asking for a map: %w", err)
		}
		if id, _ := is.ID(); !slices.Contains(ids, id) {
			return false, nil
		}
	}
	return len(ids) == len(m.all()), nil
}

// openMaps opens those that are pinned, or says what is missing.
func openMaps(f imds.Family, h policy.HostNetwork) (m *maps, why string) {
	m = &maps{}
	if m.refused, why = openMap("the counter", counterOf(f), refusedSpec); why == "" && h != policy.Allow {
		if m.allowed, why = openMap("the list of pods in the node's network", allowedPin(), allowedSpec); why == "" {
			m.asked, why = openMap("the count of pods in the node's network", askedPin(), askedSpec)
		}
	}
	if why != "" {
		m.close()
		return nil, why
	}
	return m, ""
}

// openMap opens one, or says why there is none. Whatever else is there is none.
func openMap(what, path string, spec ebpf.MapSpec) (m *ebpf.Map, why string) {
	m, err := ebpf.LoadPinnedMap(path, nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, what + " is not pinned"
	case err != nil:
		return nil, fmt.Sprintf("%s can't be opened: %v", what, err)
	case m.Type() != spec.Type || m.KeySize() != spec.KeySize || m.ValueSize() != spec.ValueSize || m.MaxEntries() != spec.MaxEntries || m.Flags() != spec.Flags:
		m.Close()
		return nil, what + " is another map"
	}
	return m, ""
}

// making keeps the two families from making the maps that they share twice.
var making sync.Mutex

// makeMaps makes those that are missing, and pins them.
func makeMaps(f imds.Family, h policy.HostNetwork) (m *maps, err error) {
	making.Lock()
	defer making.Unlock()
	m = &maps{}
	if m.refused, err = makeMap(counterOf(f), refusedSpec); err == nil && h != policy.Allow {
		if m.allowed, err = makeMap(allowedPin(), allowedSpec); err == nil {
			m.asked, err = makeMap(askedPin(), askedSpec)
		}
	}
	if err != nil {
		m.close()
		return nil, err
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

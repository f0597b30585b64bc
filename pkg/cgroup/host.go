// Pods in the node's own network: which are let through, and which have asked.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/imds-guard/imds-guard/pkg/policy"
)

// deepest is the last level of the cgroup tree at which a pod is looked for. Kubernetes puts pods at the second or third, and a
// kubelet's own root adds a few.
const deepest = 10

// hostCalls is the part of a program for calls from the node's network namespace. It ends in a jump.
func (w wanted) hostCalls() asm.Instructions {
	if w.host == policy.Allow {
		return asm.Instructions{asm.Ja.Label("allow")}
	}
	const key, one = -8, -16 // on the stack
	lookUp := func(m *ebpf.Map) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, key),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
		}
	}
	code := asm.Instructions{asm.Mov.Imm(asm.R1, int32(listed)), asm.StoreMem(asm.RFP, key, asm.R1, asm.DWord)}
	code = append(append(code, lookUp(w.allowed)...), asm.JEq.Imm(asm.R0, 0, "allow"))
	for level := int32(1); level <= deepest; level++ {
		code = append(code,
			asm.Mov.Imm(asm.R1, level),
			asm.FnGetCurrentAncestorCgroupId.Call(),
			asm.JEq.Imm(asm.R0, 0, "nobody's"), // its cgroup is not so deep
			asm.StoreMem(asm.RFP, key, asm.R0, asm.DWord),
		)
		code = append(append(code, lookUp(w.allowed)...), asm.JNE.Imm(asm.R0, 0, "allow"))
	}
	code = append(code,
		asm.FnGetCurrentCgroupId.Call().WithSymbol("nobody's"),
		asm.StoreMem(asm.RFP, key, asm.R0, asm.DWord),
	)
	code = append(append(code, lookUp(w.asked)...),
		asm.JEq.Imm(asm.R0, 0, "first"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
		asm.Ja.Label("asked"),

		asm.Mov.Imm(asm.R1, 1).WithSymbol("first"),
		asm.StoreMem(asm.RFP, one, asm.R1, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, key),
		asm.Mov.Reg(asm.R3, asm.RFP),
		asm.Add.Imm(asm.R3, one),
		asm.Mov.Imm(asm.R4, 0),
		asm.LoadMapPtr(asm.R1, w.asked.FD()),
		asm.FnMapUpdateElem.Call(),
	)
	next := "count"
	if w.host == policy.Audit {
		next = "allow"
	}
	return append(code, asm.Ja.Label(next).WithSymbol("asked"))
}

// ErrNoHostMaps says that the layer has no maps for pods in the node's network: it has yet to be put in force.
var ErrNoHostMaps = errors.New("the maps for pods in the node's network are not there yet")

// AllowHosts makes the pods in the node's network with these cgroups, by their ids, those that are let through; from then on others
// are not. It reads back what it has written.
func AllowHosts(ids []uint64) error {
	m, err := openHostMap(allowedPin(), allowedSpec)
	if err != nil {
		return err
	}
	defer m.Close()
	want := append(slices.Clone(ids), listed)
	have, err := entries(m)
	if err != nil {
		return err
	}
	for _, id := range want { // those who are to be let through first: listed is the last
		if _, there := have[id]; there {
			continue
		}
		if err := m.Put(id, uint64(1)); err != nil {
			return fmt.Errorf("letting the pod with cgroup %d through: %w", id, err)
		}
	}
	for id := range have {
		if slices.Contains(want, id) {
			continue
		}
		if err := m.Delete(id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("letting the pod with cgroup %d through no more: %w", id, err)
		}
	}
	have, err = entries(m)
	if err != nil {
		return err
	}
	for _, id := range want {
		if _, there := have[id]; !there || len(have) != len(want) {
			return errors.New("letting pods in the node's network through: somebody else writes to the list")
		}
	}
	return nil
}

// HostsListed reports whether it was said which pods in the node's network are let through, since the node has booted.
func HostsListed() (bool, error) {
	m, err := openHostMap(allowedPin(), allowedSpec)
	if err != nil {
		return false, err
	}
	defer m.Close()
	switch err := m.Lookup(listed, new(uint64)); {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("reading the list: %w", err)
	}
	return true, nil
}

// HostsAsked returns how many calls each cgroup has made, by its id, that are of no pod that is let through.
func HostsAsked() (map[uint64]uint64, error) {
	m, err := openHostMap(askedPin(), askedSpec)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	return entries(m)
}

func openHostMap(path string, spec ebpf.MapSpec) (*ebpf.Map, error) {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoHostMaps
	}
	m, why := openMap("the map", path, spec)
	if why != "" {
		return nil, fmt.Errorf("opening %s: %s", filepath.Base(path), why)
	}
	return m, nil
}

func entries(m *ebpf.Map) (map[uint64]uint64, error) {
	found := map[uint64]uint64{}
	var key, value uint64
	all := m.Iterate()
	for all.Next(&key, &value) {
		found[key] = value
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // written to meanwhile
		return nil, fmt.Errorf("reading a map: %w", err)
	}
	return found, nil
}

// ForgetHosts removes both maps: where all pods are let through nobody keeps the list, and it would be wrong the next time.
func ForgetHosts() error {
	var errs []error
	for _, path := range []string{allowedPin(), askedPin()} {
		_, err := remove(path)
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the maps for pods in the node's network: %w", err)
	}
	return nil
}

// hostNetwork pods: which are let through.

package cgroup

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/imds-guard/imds-guard/pkg/policy"
)

// deepest is the deepest level of the cgroup tree on which pods are looked for. Kubernetes puts them on the second or third,
// and a kubelet's own root adds a few.
const deepest = 10

// hostCalls is the part of a program for calls from the node's network namespace. For pods that are not let through it
// continues with a verdict in R9.
func (w wanted) hostCalls() asm.Instructions {
	if w.host == policy.Allow {
		return asm.Instructions{asm.Ja.Label("allow")}
	}
	lookUp := func(m *ebpf.Map) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R2, asm.RFP),
			asm.Add.Imm(asm.R2, otherKey),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
		}
	}
	code := asm.Instructions{asm.Mov.Imm(asm.R1, int32(listed)), asm.StoreMem(asm.RFP, otherKey, asm.R1, asm.DWord)}
	code = append(append(code, lookUp(w.allowed)...), asm.JEq.Imm(asm.R0, 0, "allow"))
	for level := int32(1); level <= deepest; level++ {
		code = append(code,
			asm.Mov.Imm(asm.R1, level),
			asm.FnGetCurrentAncestorCgroupId.Call(),
			asm.JEq.Imm(asm.R0, 0, "nobody's"), // its cgroup is not so deep
			asm.StoreMem(asm.RFP, otherKey, asm.R0, asm.DWord),
		)
		code = append(append(code, lookUp(w.allowed)...), asm.JNE.Imm(asm.R0, 0, "allow"))
	}
	verdict := w.verdict()
	if w.host == policy.Audit {
		verdict = Audited
	}
	return append(code, asm.Mov.Imm(asm.R9, int32(verdict)).WithSymbol("nobody's"))
}

// AllowHosts sets which hostNetwork pods are let through, by the ids of their cgroups; from then on others are not. It reads
// back what it has written.
func AllowHosts(ids []uint64) error {
	m, err := openPinned("the list of hostNetwork pods", allowedPin(), allowedSpec)
	if err != nil {
		return err
	}
	defer m.Close()
	want := append(slices.Clone(ids), listed)
	have, err := entries(m)
	if err != nil {
		return err
	}
	for _, id := range want { // listed comes last, once everything that is let through is in place
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
			return fmt.Errorf("no longer letting the pod with cgroup %d through: %w", id, err)
		}
	}
	have, err = entries(m)
	if err != nil {
		return err
	}
	for _, id := range want {
		if _, there := have[id]; !there || len(have) != len(want) {
			return errors.New("letting hostNetwork pods through: something else writes to the list")
		}
	}
	return nil
}

// HostsListed reports whether the list of hostNetwork pods that are let through has been written since the node booted.
func HostsListed() (bool, error) {
	m, err := openPinned("the list of hostNetwork pods", allowedPin(), allowedSpec)
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

func entries(m *ebpf.Map) (map[uint64]uint64, error) {
	found := map[uint64]uint64{}
	var key, value uint64
	all := m.Iterate()
	for all.Next(&key, &value) {
		found[key] = value
	}
	if err := all.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) { // aborted: it was written to meanwhile
		return nil, fmt.Errorf("reading a map: %w", err)
	}
	return found, nil
}

// ForgetHosts removes the list: while all pods are let through nobody maintains it, and it would be wrong the next time.
func ForgetHosts() error {
	if _, err := remove(allowedPin()); err != nil {
		return fmt.Errorf("removing the list of hostNetwork pods: %w", err)
	}
	return nil
}

// What is pinned in bpffs: programs, links and the count of refused calls.

package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// bpffses are where bpffs may be mounted: where the manifests put the node's, and on the node. (In a container, AppArmor's usual
// profile keeps /sys/fs/bpf from being written.)
var bpffses = []string{"/host/sys/fs/bpf", "/sys/fs/bpf"}

// bpffs is the one that there is, or else the node's usual one.
func bpffs() string {
	for _, path := range bpffses {
		if isBPFFS(path) {
			return path
		}
	}
	return bpffses[len(bpffses)-1]
}

// pins is the directory in it of which everything is ours. (A name in bpffs has no dots: kernel/bpf/inode.c, bpf_lookup.)
func pins() string { return filepath.Join(bpffs(), "imds-guard") }

func pinOf(f imds.Family, h hook, what string) string {
	return filepath.Join(pins(), fmt.Sprintf("%s-%s-%s", f, h.name, what))
}

func counterOf(f imds.Family) string { return filepath.Join(pins(), string(f)+"-refused") }

// readHook says why a hook is not in force at a cgroup; empty if it is. The link that is pinned is returned open, if there is
// one.
func readHook(f imds.Family, h hook, at *os.File, node uint64, counter *ebpf.Map) (pinned link.Link, why string, err error) {
	pinned, err = link.LoadPinnedLink(pinOf(f, h, "link"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "no link is pinned", nil
	}
	if err != nil { // something else, in a place of ours: there is no link
		return nil, fmt.Sprintf("its link can't be opened: %v", err), nil
	}
	why, err = judgeHook(f, h, at, node, counter, pinned)
	if err != nil {
		err = fmt.Errorf("reading the hook %s: %w", h.name, err)
	}
	return pinned, why, err
}

func judgeHook(f imds.Family, h hook, at *os.File, node uint64, counter *ebpf.Map, pinned link.Link) (why string, err error) {
	is, err := pinned.Info()
	if err != nil {
		return "", fmt.Errorf("asking for the link: %w", err)
	}
	if !h.isAt(at, is) {
		return "its link is not attached there", nil
	}
	program, err := ebpf.LoadPinnedProgram(pinOf(f, h, "program"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return "its program is not pinned", nil
	}
	if err != nil {
		return fmt.Sprintf("its program can't be opened: %v", err), nil
	}
	defer program.Close()
	runs, err := program.Info()
	if err != nil {
		return "", fmt.Errorf("asking for the program: %w", err)
	}
	id, _ := runs.ID()
	maps, _ := runs.MapIDs()
	whole, err := isWhole(h.program(f.Endpoint().Addr(), node, counter.FD()).Instructions, runs.Tag)
	if err != nil {
		return "", err
	}
	counts, err := counter.Info()
	if err != nil {
		return "", fmt.Errorf("asking for the counter: %w", err)
	}
	counterID, _ := counts.ID()
	if id != is.Program || !whole || !slices.Contains(maps, counterID) {
		return "its program is another one", nil
	}
	// What is attached is said by the cgroup itself.
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(at.Fd()), Attach: h.at})
	if err != nil {
		return "", fmt.Errorf("asking the cgroup for its programs: %w", err)
	}
	if !slices.ContainsFunc(attached.Programs, func(p link.AttachedProgram) bool { return p.ID == id }) {
		return "its program is not attached there", nil
	}
	return "", nil
}

// isAt reports whether a link is attached at a cgroup, for this hook.
func (h hook) isAt(at *os.File, is *link.Info) bool {
	id, err := idOf(at)
	cg := is.Cgroup()
	return err == nil && cg != nil && cg.CgroupId == id && ebpf.AttachType(cg.AttachType) == h.at
}

// isWhole compares code with the tag that the kernel has calculated for a program: the hash of its instructions, whatever the
// descriptors in them (kernel/bpf/core.c, bpf_prog_calc_tag).
func isWhole(code asm.Instructions, tag string) (bool, error) {
	order := binary.LittleEndian // as on every platform of EKS
	// It fills in where the jumps lead.
	if err := code.Marshal(io.Discard, order); err != nil {
		return false, fmt.Errorf("assembling the program: %w", err)
	}
	whole, err := code.HasTag(tag, order)
	if err != nil {
		return false, fmt.Errorf("calculating the program's tag: %w", err)
	}
	return whole, nil
}

// openCounter opens the count of refused calls, or says why there is none. Whatever else is there is none.
func openCounter(f imds.Family) (m *ebpf.Map, why string) {
	m, err := ebpf.LoadPinnedMap(counterOf(f), nil)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "the counter is not pinned"
	case err != nil:
		return nil, fmt.Sprintf("the counter can't be opened: %v", err)
	case m.Type() != ebpf.Array || m.KeySize() != 4 || m.ValueSize() != 8 || m.MaxEntries() != 1 || m.Flags() != 0:
		m.Close()
		return nil, "the counter is another map"
	}
	return m, ""
}

// makeCounter makes it and pins it.
func makeCounter(f imds.Family) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "imds_guard", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("making the counter: %w", err)
	}
	if err := pin(m, counterOf(f)); err != nil {
		m.Close()
		return nil, fmt.Errorf("pinning the counter: %w", err)
	}
	return m, nil
}

// putHook puts a hook in force. A link that is at the right cgroup already, alive, gets the program at one stroke; else
// another is made, before the old one is let go.
func putHook(f imds.Family, h hook, at *os.File, node uint64, counter *ebpf.Map, alive link.Link) (link.Link, error) {
	program, err := ebpf.NewProgram(h.program(f.Endpoint().Addr(), node, counter.FD()))
	if err != nil {
		return nil, fmt.Errorf("loading the program of %s: %w", h.name, err)
	}
	defer program.Close()
	l := alive
	if l == nil || l.Update(program) != nil {
		if err := overrides(at, h.at); err != nil {
			return nil, fmt.Errorf("attaching %s to %s: %w", h.name, at.Name(), err)
		}
		l, err = link.AttachRawLink(link.RawLinkOptions{Target: int(at.Fd()), Program: program, Attach: h.at})
		if err != nil {
			return nil, fmt.Errorf("attaching %s to %s: %w", h.name, at.Name(), err)
		}
	}
	if err := pin(program, pinOf(f, h, "program")); err != nil {
		return l, fmt.Errorf("pinning the program of %s: %w", h.name, err)
	}
	again, err := forget(l)
	if err == nil {
		defer again.Close()
		err = pin(again, pinOf(f, h, "link"))
	}
	if err != nil {
		return l, fmt.Errorf("pinning the link of %s: %w", h.name, err)
	}
	return l, nil
}

// pin pins something that was not pinned yet, in the place of whatever is there and at one stroke: what it replaces may be all
// that holds a link.
func pin(what interface{ Pin(path string) error }, path string) error {
	next := path + "-new"
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	if err := what.Pin(next); err != nil {
		return err
	}
	if is, err := os.Lstat(path); err == nil && is.IsDir() { // nothing of ours, and in the way
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return os.Rename(next, path)
}

// forget returns the same link without the place where the library remembers it to be pinned, right or wrong: it would not pin
// it there again.
func forget(l link.Link) (link.Link, error) {
	of, ok := l.(interface{ FD() int })
	if !ok {
		return nil, errors.New("the link has no descriptor")
	}
	fd, err := unix.FcntlInt(uintptr(of.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicating its descriptor: %w", err)
	}
	return link.NewFromFD(fd)
}

func isBPFFS(path string) bool {
	var s unix.Statfs_t
	return unix.Statfs(path, &s) == nil && s.Type == unix.BPF_FS_MAGIC
}

// The programs and links pinned in bpffs.

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

// bpffses are where bpffs may be mounted: where the manifests mount the node's, and its usual place. (In a container, the usual
// AppArmor profile forbids writing to /sys/fs/bpf.)
var bpffses = []string{"/host/sys/fs/bpf", "/sys/fs/bpf"}

// bpffs returns the one that exists, or else the usual one.
func bpffs() string {
	for _, path := range bpffses {
		if isBPFFS(path) {
			return path
		}
	}
	return bpffses[len(bpffses)-1]
}

// pins returns the directory in bpffs that holds only our pins. (Names in bpffs can't contain dots: kernel/bpf/inode.c,
// bpf_lookup.)
func pins() string { return filepath.Join(bpffs(), "imds-guard") }

func pinOf(f imds.Family, h hook, what string) string {
	return filepath.Join(pins(), fmt.Sprintf("%s-%s-%s", f, h.name, what))
}

// isPinned reports whether anything is left of a hook that watches, or of what it has recorded.
func isPinned(f imds.Family, h hook) bool {
	for _, path := range []string{pinOf(f, h, "link"), pinOf(f, h, "program"), beginningsPin()} {
		if _, err := os.Lstat(path); err == nil {
			return true
		}
	}
	return false
}

// readHook says why a hook is not in force at a cgroup; empty if it is. It returns the pinned link open, if there is one.
func readHook(h hook, at *os.File, w wanted) (pinned link.Link, why string, err error) {
	pinned, err = link.LoadPinnedLink(pinOf(w.family, h, "link"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, "no link is pinned", nil
	}
	if err != nil { // something else is in our place, so there is no link
		return nil, fmt.Sprintf("its link can't be opened: %v", err), nil
	}
	why, err = judgeHook(h, at, w, pinned)
	if err != nil {
		err = fmt.Errorf("reading the hook %s: %w", h.name, err)
	}
	return pinned, why, err
}

func judgeHook(h hook, at *os.File, w wanted, pinned link.Link) (why string, err error) {
	is, err := pinned.Info()
	if err != nil {
		return "", fmt.Errorf("inspecting the link: %w", err)
	}
	if !h.isAt(at, is) {
		return "its link is not attached there", nil
	}
	program, err := ebpf.LoadPinnedProgram(pinOf(w.family, h, "program"), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return "its program is not pinned", nil
	}
	if err != nil {
		return fmt.Sprintf("its program can't be opened: %v", err), nil
	}
	defer program.Close()
	runs, err := program.Info()
	if err != nil {
		return "", fmt.Errorf("inspecting the program: %w", err)
	}
	id, _ := runs.ID()
	whole, err := isWhole(h.program(w).Instructions, runs.Tag)
	if err == nil && !whole {
		whole, err = isWhole(h.program(w.otherwise()).Instructions, runs.Tag)
	}
	if err != nil {
		return "", err
	}
	used, _ := runs.MapIDs()
	same, err := w.are(h, used)
	if err != nil {
		return "", err
	}
	if id != is.Program || !whole || !same {
		return "its program is a different one", nil
	}
	// Only the cgroup itself can say what is attached.
	attached, err := link.QueryPrograms(link.QueryOptions{Target: int(at.Fd()), Attach: h.at})
	if err != nil {
		return "", fmt.Errorf("listing the cgroup's programs: %w", err)
	}
	if !slices.ContainsFunc(attached.Programs, func(p link.AttachedProgram) bool { return p.ID == id }) {
		return "its program is not attached there", nil
	}
	return "", nil
}

// isAt reports whether a link is attached to a cgroup, for this hook.
func (h hook) isAt(at *os.File, is *link.Info) bool {
	id, err := idOf(at)
	cg := is.Cgroup()
	return err == nil && cg != nil && cg.CgroupId == id && ebpf.AttachType(cg.AttachType) == h.at
}

// isWhole compares code with the tag that the kernel calculated for a program: the hash of its instructions without their file
// descriptors (kernel/bpf/core.c, bpf_prog_calc_tag).
func isWhole(code asm.Instructions, tag string) (bool, error) {
	order := binary.LittleEndian // as on every platform of EKS
	// Marshal resolves the jump targets.
	if err := code.Marshal(io.Discard, order); err != nil {
		return false, fmt.Errorf("assembling the program: %w", err)
	}
	whole, err := code.HasTag(tag, order)
	if err != nil {
		return false, fmt.Errorf("calculating the program's tag: %w", err)
	}
	return whole, nil
}

// putHook puts a hook in force. A live link at the right cgroup gets the program atomically; otherwise a new link is made
// before the old one is released.
func putHook(h hook, at *os.File, w wanted, alive link.Link) (link.Link, error) {
	program, err := ebpf.NewProgram(h.program(w))
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
	if err := pin(program, pinOf(w.family, h, "program")); err != nil {
		return l, fmt.Errorf("pinning the program of %s: %w", h.name, err)
	}
	again, err := forget(l)
	if err == nil {
		defer again.Close()
		err = pin(again, pinOf(w.family, h, "link"))
	}
	if err != nil {
		return l, fmt.Errorf("pinning the link of %s: %w", h.name, err)
	}
	return l, nil
}

// pin pins something that is not pinned yet, atomically replacing whatever is there: what it replaces may be the only thing
// that holds a link.
func pin(what interface{ Pin(path string) error }, path string) error {
	next := path + "-new"
	if err := os.RemoveAll(next); err != nil {
		return err
	}
	if err := what.Pin(next); err != nil {
		return err
	}
	if is, err := os.Lstat(path); err == nil && is.IsDir() { // not ours, and in the way
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return os.Rename(next, path)
}

// forget returns the same link without the library's memory of where it is pinned, right or wrong: otherwise the library would
// not pin it there again.
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

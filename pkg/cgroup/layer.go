// One family's layer: looking, and repairing what the look found.

package cgroup

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/capability"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// LayerName names the layer, as a metric label and for --layers.
const LayerName = "cgroup"

// States lists every state of the layer.
var States = layer.States(layer.Auditing)

// Layer is the layer of one family. Every look reads all hooks from the pins and from the cgroup. Links found in force are held
// open, so that the loss of a pin opens nothing.
type Layer struct {
	family    imds.Family
	given     string
	directory string // the last that was found
	held      map[hook]link.Link
	refused   count
}

// New makes the layer of one family for the pods below a cgroup v2 directory; without one, it looks for the directory.
func New(f imds.Family, podsCgroup string) *Layer {
	return &Layer{family: f, given: podsCgroup, held: map[hook]link.Link{}}
}

// ID implements guard.Layer.
func (l *Layer) ID() layer.ID { return layer.ID{Name: LayerName, Family: l.family} }

// seen is what a look found.
type seen struct {
	directory string
	wanted    // without the maps
	missing   []hook
	why       []string // why each of them is missing
	left      []hook   // left over from another mode
	unlisted  bool     // it is not known yet which hostNetwork pods are let through
}

// impossible says why the node does not support the layer.
type impossible struct{ error }

// Look implements guard.Layer. Only two things in the policy matter here: what happens to hostNetwork pods, and whether
// anything is refused at all. If so, the sockets of all other pods are.
func (l *Layer) Look(p policy.Policy, _ func(why string)) layer.Finding {
	r := layer.Reading{State: layer.Enforced, SocketsOnly: true}
	s, err := l.read(p)
	r.Place, r.Blocked = l.directory, l.refused.total
	switch {
	case errors.As(err, new(impossible)) && len(l.held) == 0: // if it was possible before, what is gone may come back
		r.State, r.Detail = layer.Unsupported, err.Error()
		return layer.Finding{Reading: r}
	case err != nil:
		r.State, r.Detail, r.Err = layer.Unknown, err.Error(), err
		return layer.Finding{Reading: r}
	case len(s.missing)+len(s.left) > 0:
		r.State, r.Detail = layer.Missing, strings.Join(s.why, "; ")
	case s.auditOnly:
		r.State = layer.Auditing
	case s.unlisted:
		r.Detail = "all hostNetwork pods are let through, because it is not known yet which of them should be"
	}
	for _, h := range hooksOf(l.family, s.auditOnly) {
		if !slices.Contains(s.missing, h) {
			r.Rules = append(r.Rules, fmt.Sprintf("%s at %s", h.name, s.directory))
		}
	}
	return layer.Finding{Reading: r, Plan: s}
}

// read reads every hook.
func (l *Layer) read(p policy.Policy) (s seen, err error) {
	s.family, s.host, s.auditOnly = l.family, p.HostNetwork(), p.AuditOnly()
	at, err := l.open(&s)
	if err != nil {
		return s, err
	}
	defer at.Close()
	for _, h := range hooksOf(l.family, true) {
		if h.watches() && !s.auditOnly && isPinned(l.family, h) {
			s.left, s.why = append(s.left, h), append(s.why, h.name+": it belongs to audit mode")
		}
	}
	m, why := openMaps(l.family, s.host, s.auditOnly)
	if m == nil { // then no program can be using the right ones
		s.missing, s.why = hooksOf(l.family, s.auditOnly), append(s.why, why)
		return s, nil
	}
	defer m.close()
	if err := l.refused.read(m.refused); err != nil {
		return s, err
	}
	if m.allowed != nil {
		err := m.allowed.Lookup(listed, new(uint64))
		s.unlisted = errors.Is(err, ebpf.ErrKeyNotExist)
	}
	w := s.wanted
	w.maps = m
	for _, h := range hooksOf(l.family, s.auditOnly) {
		pinned, why, err := readHook(h, at, w)
		if err == nil && why == "" {
			l.hold(h, pinned)
			continue
		}
		if pinned != nil {
			pinned.Close()
		}
		if err != nil {
			return s, err
		}
		s.missing, s.why = append(s.missing, h), append(s.why, h.name+": "+why)
	}
	return s, nil
}

// open opens the pods' cgroup, and finds out whether the node supports the layer at all.
func (l *Layer) open(s *seen) (at *os.File, err error) {
	// It is searched for again only when it is gone or has no pods any more: a large node has thousands of directories.
	if l.directory == "" || isCgroup2(l.directory) != nil || isEmpty(l.directory) {
		found, err := find(l.given)
		if err != nil {
			return nil, err
		}
		l.directory = found
	}
	s.directory = l.directory
	if !isBPFFS(bpffs()) {
		return nil, impossible{fmt.Errorf("no bpffs is mounted at %s", bpffs())}
	}
	own, err := capability.Own()
	if err != nil {
		return nil, err
	}
	// Programs of this kind need both, and CAP_SYS_ADMIN implies both (kernel/bpf/syscall.c, bpf_prog_load).
	if !own.Has(unix.CAP_SYS_ADMIN) && !(own.Has(unix.CAP_BPF) && own.Has(unix.CAP_NET_ADMIN)) {
		return nil, impossible{errors.New("the agent lacks CAP_BPF or CAP_NET_ADMIN")}
	}
	s.names = own.Has(unix.CAP_SYS_ADMIN) || own.Has(unix.CAP_PERFMON)
	if s.node, err = nodeCookie(); errors.Is(err, unix.ENOPROTOOPT) {
		return nil, impossible{errors.New("the kernel can't tell network namespaces apart (SO_NETNS_COOKIE, Linux 5.14)")}
	} else if err != nil {
		return nil, err
	}
	if at, err = os.Open(s.directory); err != nil {
		return nil, fmt.Errorf("opening the pods' cgroup: %w", err)
	}
	if s.pods, err = idOf(at); err != nil {
		at.Close()
		return nil, err
	}
	_, _, err = attached(at, ebpf.AttachCGroupInet4Connect) // the library does not distinguish the errors
	switch {
	case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS):
		err = impossible{errors.New("the kernel has no BPF for cgroups (CONFIG_CGROUP_BPF)")}
	case err != nil:
		err = fmt.Errorf("listing the cgroup's programs: %w", err)
	default:
		return at, nil
	}
	at.Close()
	return nil, err
}

// hold keeps a link that is in force, in place of the previous one.
func (l *Layer) hold(h hook, pinned link.Link) {
	if before := l.held[h]; before != nil {
		before.Close()
	}
	l.held[h] = pinned
}

// Repair implements guard.Layer.
func (l *Layer) Repair(_ policy.Policy, f layer.Finding) error {
	s, ok := f.Plan.(seen)
	if !ok {
		return errors.New("repairing the cgroup layer: the finding is not its own")
	}
	if err := l.put(s); err != nil {
		return fmt.Errorf("repairing the cgroup layer: %w", err)
	}
	return nil
}

func (l *Layer) put(s seen) error {
	if err := os.MkdirAll(pins(), 0o700); err != nil {
		return fmt.Errorf("making a directory for the pins: %w", err)
	}
	at, err := os.Open(s.directory)
	if err != nil {
		return fmt.Errorf("opening the pods' cgroup: %w", err)
	}
	defer at.Close()
	w := s.wanted
	if w.maps, err = makeMaps(l.family, s.host, s.auditOnly); err != nil {
		return err
	}
	defer w.close()
	var errs []error
	for _, h := range s.missing {
		alive := l.alive(h, at)
		put, err := putHook(h, at, w, alive)
		errs = append(errs, err)
		if alive != nil && alive != put && alive != l.held[h] {
			alive.Close()
		}
		if put != nil && put != l.held[h] {
			l.hold(h, put)
		}
	}
	for _, h := range s.left {
		_, err := remove(beginningsPin()) // first: no request may stay in memory that nobody reads
		errs = append(errs, err)
		_, err = removeHook(l.family, h)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// alive returns a link, held or pinned, that is attached to the right cgroup, if there is one.
func (l *Layer) alive(h hook, at *os.File) link.Link {
	fits := func(candidate link.Link) bool {
		is, err := candidate.Info()
		return err == nil && h.isAt(at, is)
	}
	if held := l.held[h]; held != nil && fits(held) {
		return held
	}
	pinned, err := link.LoadPinnedLink(pinOf(l.family, h, "link"), nil)
	if err != nil {
		return nil
	}
	if !fits(pinned) {
		pinned.Close()
		return nil
	}
	return pinned
}

// count adds up the refused calls across recreations of the counter.
type count struct {
	total, last uint64
	of          ebpf.MapID
}

func (c *count) read(counter *ebpf.Map) error {
	var now uint64
	if err := counter.Lookup(uint32(0), &now); err != nil {
		return fmt.Errorf("reading the counter: %w", err)
	}
	is, err := counter.Info()
	if err != nil {
		return fmt.Errorf("inspecting the counter: %w", err)
	}
	id, _ := is.ID()
	if id != c.of {
		c.last = 0
	}
	c.total, c.last, c.of = c.total+now-c.last, now, id
	return nil
}

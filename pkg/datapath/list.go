// A single search for such ways.

package datapath

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/nldump"
)

// programs are the programs that such a datapath attaches to pods' interfaces, under the kernel's names, which have at most 15
// bytes (include/uapi/linux/bpf.h, BPF_OBJ_NAME_LEN). No other program counts: the policy agent of Amazon VPC CNI attaches
// some, too.
var programs = map[string]string{
	"cil_from_contai": "Cilium", // cilium/cilium, bpf/bpf_lxc.c: cil_from_container
	"cali_tc_preambl": "Calico", // projectcalico/calico, felix/bpf-gpl/tc_preamble.c: cali_tc_preamble
}

// links are interfaces of the node by which such a datapath is recognised where the names of programs can't be read. Reading
// them takes CAP_SYS_ADMIN, unless the programs were attached by tc.
var links = map[string]string{
	"cilium_host": "Cilium", // cilium/cilium, pkg/defaults/node.go: HostDevice
	"bpfin.cali":  "Calico", // projectcalico/calico, felix/dataplane/linux/dataplanedefs
}

// stacked are the kinds of pod interface whose packets leave through one of the node's interfaces without the node routing
// them.
var stacked = []string{"macvlan", "macvtap", "ipvlan", "ipvtap"}

// List searches the calling thread's network namespace, and those of the pods connected to it. Each way is listed once, with
// one example.
func List() (ways []string, err error) {
	all, err := nldump.Consistent(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	found := map[string]string{} // the datapath's owner: an example
	note := func(whose, example string) {
		if _, known := found[whose]; !known && whose != "" {
			found[whose] = example
		}
	}
	searched := map[int]bool{}
	for _, l := range all {
		a := l.Attrs()
		note(links[a.Name], "interface "+a.Name)
		if kind := l.Type(); kind != "veth" && kind != "netkit" || a.NetNsID < 0 {
			continue
		}
		names, err := programsAt(l)
		if err != nil {
			return nil, fmt.Errorf("reading the programs at %s: %w", a.Name, err)
		}
		for _, name := range names {
			note(programs[name], fmt.Sprintf("program %s at %s", name, a.Name))
		}
		if searched[a.NetNsID] {
			continue
		}
		searched[a.NetNsID] = true
		kind, name, err := stackedIn(a.NetNsID)
		if err != nil {
			return nil, fmt.Errorf("listing the interfaces of the pod behind %s: %w", a.Name, err)
		}
		note(kind, fmt.Sprintf("interface %s of the pod behind %s", name, a.Name))
	}
	for whose, example := range found {
		ways = append(ways, fmt.Sprintf("%s: %s", whose, example))
	}
	slices.Sort(ways)
	return ways, nil
}

// programsAt returns the names of the programs that see what a pod sends through the interface: those of tc, tcx and netkit.
func programsAt(l netlink.Link) (names []string, err error) {
	filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
	if err != nil && !gone(err) && !errors.Is(err, netlink.ErrDumpInterrupted) { // an incomplete list will do until the next time
		return nil, err
	}
	for _, f := range filters {
		if b, ok := f.(*netlink.BpfFilter); ok {
			names = append(names, kernelName(b.Name))
		}
	}
	at := []ebpf.AttachType{ebpf.AttachTCXIngress}
	if l.Type() == "netkit" {
		at = []ebpf.AttachType{ebpf.AttachNetkitPrimary, ebpf.AttachNetkitPeer}
	}
	for _, where := range at {
		found, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: where})
		switch {
		case gone(err), errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, unix.EINVAL): // before Linux 6.6
			continue
		case errors.Is(err, unix.EPERM): // a seccomp profile, without CAP_BPF; the interfaces' names are still left to go by
			continue
		case err != nil:
			return nil, err
		}
		for _, p := range found.Programs {
			name, err := nameOf(p.ID)
			if err != nil {
				return nil, err
			}
			names = append(names, name)
		}
	}
	return names, nil
}

// nameOf returns a program's name; empty without permission to ask.
func nameOf(id ebpf.ProgramID) (string, error) {
	p, err := ebpf.NewProgramFromID(id)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOENT):
		return "", nil
	case err != nil:
		return "", fmt.Errorf("opening program %d: %w", id, err)
	}
	defer p.Close()
	is, err := p.Info()
	if err != nil {
		return "", fmt.Errorf("inspecting program %d: %w", id, err)
	}
	return is.Name, nil
}

// kernelName returns the beginning of a filter's name, which the attaching program may have extended, e.g.
// cil_from_container-eni0123456789a.
func kernelName(filter string) string { return filter[:min(len(filter), unix.BPF_OBJ_NAME_LEN-1)] }

// gone reports that the interface was removed meanwhile.
func gone(err error) bool { return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) }

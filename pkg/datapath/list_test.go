package datapath

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

const podLink = "eni0123456789a"

// newNode makes a node with a pod behind an interface of Amazon VPC CNI's, and one behind another.
func newNode(t *testing.T) (*testnode.Node, *testnode.Pod) {
	t.Helper()
	n := testnode.Make(t)
	pod, err := n.AddPod(podLink)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.AddPod("eniffffffffff0"); err != nil {
		t.Fatal(err)
	}
	return n, pod
}

func sh(t *testing.T, in interface {
	Command(ctx context.Context, name string, args ...string) *exec.Cmd
}, script string,
) {
	t.Helper()
	if out, err := in.Command(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// must fails the test unless exactly these ways are seen.
func must(t *testing.T, n *testnode.Node, want ...string) {
	t.Helper()
	var got []string
	err := n.Host().Do(func() (err error) {
		got, err = List()
		return err
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ways %q (%v), want %q", got, err, want)
	}
}

// A pod's interface stacked on one of the node's is found, inside the pod; one stacked on the pod's own does not count.
func TestStackedInterfaces(t *testing.T) {
	t.Parallel()
	n, pod := newNode(t)
	must(t, n)
	sh(t, pod, "ip link add own0 link eth0 type macvlan mode bridge")
	must(t, n)
	sh(t, n, "ip link add mv0 link eth0 type macvlan mode bridge")
	must(t, n) // the node's own
	sh(t, n, "ip link set mv0 netns "+pod.Path())
	must(t, n, "macvlan: interface mv0 of the pod behind "+podLink)
	if err := n.DeletePod(pod); err != nil {
		t.Fatal(err)
	}
	must(t, n)
}

// A datapath is recognised by the names of its programs, attached by tc, by tcx, and to a netkit; other programs don't count.
func TestPrograms(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, program, want string }{
		{"Cilium", "cil_from_container", "Cilium: program cil_from_contai at " + podLink},
		{"Calico", "cali_tc_preamble", "Calico: program cali_tc_preambl at " + podLink},
		{"the policy agent of VPC CNI", "handle_ingress", ""}, // aws/aws-network-policy-agent, pkg/ebpf/c/tc.v4ingress.bpf.c
	} {
		for how, attach := range map[string]func(t *testing.T, program *ebpf.Program, index int, name string) error{"tc": attachTC, "tcx": attachTCX} {
			t.Run(c.name+"/"+how, func(t *testing.T) {
				t.Parallel()
				n, _ := newNode(t)
				program := load(t, c.program)
				err := n.Host().Do(func() error {
					l, err := netlink.LinkByName(podLink)
					if err != nil {
						return err
					}
					return attach(t, program, l.Attrs().Index, c.program+"-"+podLink)
				})
				if errors.Is(err, ebpf.ErrNotSupported) {
					return // before Linux 6.6 there is no tcx, and so no program at it
				}
				if err != nil {
					t.Fatal(err)
				}
				var want []string
				if c.want != "" {
					want = append(want, c.want)
				}
				must(t, n, want...)
			})
		}
	}
}

// Where programs' names can't be read, the datapath is recognised by its own interfaces.
func TestInterfacesOfADatapath(t *testing.T) {
	t.Parallel()
	n, _ := newNode(t)
	sh(t, n, "ip link add cilium_host type veth peer name cilium_net; ip link add bpfin.cali type veth peer name bpfout.cali")
	must(t, n, "Calico: interface bpfin.cali", "Cilium: interface cilium_host")
}

// The watch looks when it is woken, and once in a resync period; what it found is not known before the first time.
func TestWatch(t *testing.T) {
	t.Parallel()
	n, pod := newNode(t)
	changes := make(chan Found, 10)
	w := NewWatch(time.Hour, func(_, now Found) { changes <- now })
	if found := w.Found(); found.Err != ErrNotSearched {
		t.Errorf("before the first search: %+v", found)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- n.Host().Do(func() error {
			w.Run(ctx)
			return nil
		})
	}()
	w.First(time.Minute)
	if found := <-changes; found.Err != nil || len(found.Ways) > 0 {
		t.Errorf("the first search: %+v", found)
	}
	sh(t, n, "ip link add mv0 link eth0 type macvlan mode bridge; ip link set mv0 netns "+pod.Path())
	w.Wake()
	if found := <-changes; len(found.Ways) != 1 || !slices.Equal(found.Ways, w.Found().Ways) || !strings.Contains(found.Ways[0], "mv0") {
		t.Errorf("with a macvlan: %+v, %+v", found, w.Found())
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Each change of the result is reported, including a failure of the first search; what was found before a failure still counts.
func TestWatchTells(t *testing.T) {
	no := errors.New("no")
	var told []string
	w := NewWatch(time.Hour, func(before, now Found) { told = append(told, fmt.Sprint(before.Err, now.Ways, now.Err)) })
	for _, step := range []struct {
		ways []string
		err  error
		want string
	}{
		{nil, no, "not checked yet [] no"},
		{nil, no, ""},
		{[]string{"a"}, nil, "no [a] <nil>"},
		{[]string{"a"}, nil, ""},
		{nil, no, "<nil> [a] no"},
		{nil, nil, "no [] <nil>"},
	} {
		told = nil
		w.list = func() ([]string, error) { return step.ways, step.err }
		w.search()
		if got := strings.Join(told, ","); got != step.want {
			t.Errorf("%q, want %q", got, step.want)
		}
	}
}

// A search that hangs proves nothing any more.
func TestFoundGetsOld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWatch(10*time.Second, func(before, now Found) {})
		w.list = func() ([]string, error) { return []string{"a"}, nil }
		w.search()
		time.Sleep(30 * time.Second)
		if f := w.Found(); f.Err != nil || len(f.Ways) != 1 {
			t.Errorf("after three resync periods: %+v", f)
		}
		time.Sleep(time.Second)
		if f := w.Found(); f.Err == nil || f.Err.Error() != "the last search was 31s ago" || len(f.Ways) != 1 {
			t.Errorf("after a second more: %+v", f)
		}
	})
}

// load loads a program that lets everything through.
func load(t *testing.T, name string) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name[:min(len(name), unix.BPF_OBJ_NAME_LEN-1)], Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}, // TC_ACT_UNSPEC
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func attachTC(_ *testing.T, p *ebpf.Program, index int, name string) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}
	if err := netlink.QdiscAdd(qdisc); err != nil {
		return err
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          p.FD(), Name: name, DirectAction: true,
	})
}

func attachTCX(t *testing.T, p *ebpf.Program, index int, _ string) error {
	l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		t.Cleanup(func() { l.Close() })
	}
	return err
}

package agent

import (
	"net"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// redirect gives the node a datapath that bypasses its routing: a program at the pod's interface passes what the pod sends to
// the uplink, as Cilium does with eBPF host routing.
func (n *node) redirect(program string) {
	n.t.Helper()
	gateway, err := n.Outside().HardwareAddr("node0")
	if err != nil {
		n.t.Fatal(err)
	}
	err = n.Host().Do(func() error {
		uplink, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		l, err := netlink.LinkByName(n.pod.Ifname)
		if err != nil {
			return err
		}
		code := asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadMem(asm.R0, asm.R6, 16, asm.Word), // __sk_buff.protocol
			asm.JNE.Imm(asm.R0, int32(bigEndian(unix.ETH_P_IP)), "pass"),
		}
		for i, b := range gateway { // on the stack
			code = append(code, asm.StoreImm(asm.RFP, int16(i-8), int64(b), asm.Byte))
		}
		code = append(code,
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, 0),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 6),
			asm.Mov.Imm(asm.R5, 0),
			asm.FnSkbStoreBytes.Call(),
			asm.Mov.Imm(asm.R1, int32(uplink.Index)),
			asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(),
			asm.Return(),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("pass"), // TC_ACT_UNSPEC
			asm.Return(),
		)
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: program[:15], Type: ebpf.SchedCLS, License: "GPL", Instructions: code})
		if err != nil {
			return err
		}
		defer p.Close()
		at := netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}
		if err := netlink.QdiscAdd(&netlink.Clsact{QdiscAttrs: at}); err != nil {
			return err
		}
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
			},
			Fd: p.FD(), Name: program + "-" + n.pod.Ifname, DirectAction: true,
		})
	})
	if err != nil {
		n.t.Fatal(err)
	}
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }

// A pod whose packets a program passes to the uplink is served past both layers of packets: with them alone the node is not called
// protected. Its sockets are refused.
func TestRedirectPastForward(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	all := n.layers
	n.layers = "iptables,route"
	a := n.start("--resync-period", "200ms")
	eventually(t, "both layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if n.served(variants[0]) {
		t.Error("without the program the pod is served")
	}
	eventually(t, "without it the node is called protected", func() bool { return a.metric("imds_guard_protected") == 1 })
	n.redirect("cil_from_container")
	eventually(t, "with it the pod is served", func() bool { return n.served(variants[0]) })
	eventually(t, "the node is not called protected", func() bool { return a.metric("imds_guard_protected") == 0 && !a.ready() })
	a.kill()
	n.layers = all
	n.startReady(extra...)
	if got := n.calls(n.pod.Namespace); !allAre(got, "EPERM") {
		t.Errorf("with the layer of sockets its calls end in %q", got)
	}
}

// The programs, assembled for a hook, an endpoint and a node.

package cgroup

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// hook is a place in the kernel where a program of ours is asked about a socket call, or is shown a packet.
type hook struct {
	// name is in the pins' names, the log and `check`.
	name string
	at   ebpf.AttachType
	// mapped: the address is looked for in its IPv4-mapped spelling. The kernel asks IPv6's hook when that is connected to
	// (net/ipv6/tcp_ipv6.c, tcp_v6_pre_connect), and IPv4's when it is sent to (net/ipv6/udp.c, udpv6_sendmsg).
	mapped bool
}

// watches: the program sees packets leave, and stops none.
func (h hook) watches() bool { return h.at == ebpf.AttachCGroupInetEgress }

// hooksOf lists a family's under a policy.
func hooksOf(f imds.Family, auditOnly bool) []hook {
	hooks := []hook{
		{"connect4", ebpf.AttachCGroupInet4Connect, false},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, false},
		{"connect6-mapped", ebpf.AttachCGroupInet6Connect, true},
	}
	if f == imds.IPv6 {
		hooks = []hook{{"connect6", ebpf.AttachCGroupInet6Connect, false}, {"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, false}}
	}
	if auditOnly {
		hooks = append(hooks, hook{"egress", ebpf.AttachCGroupInetEgress, false})
	}
	return hooks
}

// Hooks names a family's, for a person.
func Hooks(f imds.Family, auditOnly bool) (names []string) {
	for _, h := range hooksOf(f, auditOnly) {
		names = append(names, h.name)
	}
	return names
}

// Where struct bpf_sock_addr has the address that is connected or sent to, in network byte order, and the socket; and where struct
// bpf_sock has the socket's mark (include/uapi/linux/bpf.h).
const (
	userIP4  = 4
	userIP6  = 8
	socket   = 64
	sockMark = 16
)

// probeMark is the mark (SO_MARK) of a socket that is refused in the node's own network namespace, too: that of Ask. It takes
// CAP_NET_ADMIN or CAP_NET_RAW, and nobody else has a reason to choose it.
const probeMark = 0x494d4453

// where returns the words of the address, as the hook sees them, and where the first one is.
func (h hook) where(address netip.Addr) (words []uint32, offset int16) {
	bytes, offset := address.AsSlice(), int16(userIP4)
	if address.Is6() || h.mapped {
		as16 := address.As16()
		bytes, offset = as16[:], userIP6
	}
	for ; len(bytes) > 0; bytes = bytes[4:] {
		words = append(words, binary.NativeEndian.Uint32(bytes))
	}
	return words, offset
}

// wanted is what a family's programs are to do, and with which maps.
type wanted struct {
	family    imds.Family
	node      uint64 // the cookie of its network namespace
	pods      uint64 // the id of the pods' cgroup
	host      policy.HostNetwork
	auditOnly bool
	// names: an attempt's process is named. That takes CAP_PERFMON (kernel/bpf/helpers.c, bpf_base_func_proto).
	names bool
	*maps
}

// otherwise is the same with the names of processes, or without: what another agent or a check loads that has other capabilities.
func (w wanted) otherwise() wanted {
	w.names = !w.names
	return w
}

// verdict is what becomes of a pod's call.
func (w wanted) verdict() Verdict {
	if w.auditOnly {
		return Audited
	}
	return Blocked
}

// Where a program has what it needs, from the end of its stack: an event, which begins with the key of attempts, and the value of a new
// one; and keys of other maps.
const (
	event    = -40 // see Attempt
	fresh    = event - valueSize
	otherKey = fresh - 8
)

func (h hook) program(w wanted) *ebpf.ProgramSpec {
	spec := &ebpf.ProgramSpec{Name: "imds_guard", Type: ebpf.CGroupSockAddr, AttachType: h.at, License: "Apache-2.0"}
	if h.watches() {
		spec.Type, spec.Instructions = ebpf.CGroupSKB, w.requests()
	} else {
		spec.Instructions = h.calls(w)
	}
	return spec
}

// calls is what runs at a socket call. Those to the endpoint from another network namespace than the node's own are counted and refused,
// and so are those of Ask; all others are let through, but for those of pods in the node's network, if the policy has something
// against them. In audit mode none but those of Ask is refused.
func (h hook) calls(w wanted) asm.Instructions {
	words, offset := h.where(w.family.Endpoint().Addr())
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for i, word := range words {
		code = append(code,
			asm.LoadMem(asm.R1, asm.R6, offset+4*int16(i), asm.Word),
			asm.JNE.Imm32(asm.R1, int32(word), "allow"),
		)
	}
	code = append(code,
		asm.Mov.Imm(asm.R9, int32(w.verdict())),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetNetnsCookie.Call(),
		asm.LoadImm(asm.R1, int64(w.node), asm.DWord),
		asm.JNE.Reg(asm.R0, asm.R1, "attempt"),
		asm.LoadMem(asm.R1, asm.R6, socket, asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, sockMark, asm.Word),
		asm.JEq.Imm32(asm.R1, probeMark, "refused"),
	)
	code = append(code, w.hostCalls()...)
	code = append(code, asm.LoadImm(asm.R8, int64(w.pods), asm.DWord).WithSymbol("attempt"))
	code = append(code, whose(
		asm.Instructions{asm.Mov.Reg(asm.R1, asm.R7), asm.FnGetCurrentAncestorCgroupId.Call()},
		asm.Instructions{asm.FnGetCurrentCgroupId.Call()},
	)...)
	code = append(code, w.count(1, toldEvery, "counted")...)
	name := asm.Instructions{ // empty
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.RFP, event+keySize, asm.R1, asm.DWord),
		asm.StoreMem(asm.RFP, event+keySize+8, asm.R1, asm.DWord),
	}
	if w.names {
		name = asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.RFP),
			asm.Add.Imm(asm.R1, event+keySize),
			asm.Mov.Imm(asm.R2, 16),
			asm.FnGetCurrentComm.Call(),
		}
	}
	code = append(append(code, name...),
		asm.LoadMapPtr(asm.R1, w.news.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, event),
		asm.Mov.Imm(asm.R3, -event),
		asm.Mov.Imm(asm.R4, 0),
		asm.FnRingbufOutput.Call(),

		asm.JEq.Imm(asm.R9, int32(Audited), "allow").WithSymbol("counted"),
		asm.StoreImm(asm.RFP, otherKey, 0, asm.Word).WithSymbol("refused"), // the only key
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, otherKey),
		asm.LoadMapPtr(asm.R1, w.refused.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "refuse"),
		asm.Mov.Imm(asm.R1, 1),
		asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),

		asm.Mov.Imm(asm.R0, 0).WithSymbol("refuse"),
		asm.Return(),
		asm.Mov.Imm(asm.R0, 1).WithSymbol("allow"),
		asm.Return(),
	)
	return code
}

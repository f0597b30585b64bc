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

// hook is a place in the kernel where one of our programs decides on a socket call, or sees a packet.
type hook struct {
	// name appears in the pins' names, the log and `check`.
	name string
	at   ebpf.AttachType
	// mapped: the program compares the IPv4-mapped form of the address. The kernel calls the IPv6 hook when such an address is
	// connected to (net/ipv6/tcp_ipv6.c, tcp_v6_pre_connect), and the IPv4 hook when it is sent to (net/ipv6/udp.c,
	// udpv6_sendmsg).
	mapped bool
}

// watches reports whether the program only watches packets leave, and stops none.
func (h hook) watches() bool { return h.at == ebpf.AttachCGroupInetEgress }

// hooksOf lists a family's hooks under a policy.
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

// Hooks lists the names of a family's hooks, for people.
func Hooks(f imds.Family, auditOnly bool) (names []string) {
	for _, h := range hooksOf(f, auditOnly) {
		names = append(names, h.name)
	}
	return names
}

// The offsets in struct bpf_sock_addr of the address that is connected or sent to, in network byte order, and of the socket;
// and the offset in struct bpf_sock of the socket's mark (include/uapi/linux/bpf.h).
const (
	userIP4  = 4
	userIP6  = 8
	socket   = 64
	sockMark = 16
)

// probeMark is the mark (SO_MARK) of Ask's socket, which is refused even in the node's own network namespace. Setting a mark
// needs CAP_NET_ADMIN or CAP_NET_RAW, and nobody else has a reason to choose this one.
const probeMark = 0x494d4453

// where returns the words of the address as the hook sees them, and the offset of the first.
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

// wanted is what a family's programs should do, and with which maps.
type wanted struct {
	family    imds.Family
	node      uint64 // the cookie of its network namespace
	pods      uint64 // the id of the pods' cgroup
	host      policy.HostNetwork
	auditOnly bool
	// names: events name the process. That needs CAP_PERFMON (kernel/bpf/helpers.c, bpf_base_func_proto).
	names bool
	*maps
}

// otherwise returns the same with the opposite of names: what another agent or check with other capabilities would load.
func (w wanted) otherwise() wanted {
	w.names = !w.names
	return w
}

// verdict returns what happens to a pod's call.
func (w wanted) verdict() Verdict {
	if w.auditOnly {
		return Audited
	}
	return Blocked
}

// The layout of a program's stack, from its end: an event, which starts with the key of attempts, and the value of a new entry;
// then keys of other maps.
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

// calls is the program for socket calls. Calls to the endpoint from a network namespace other than the node's are counted and
// refused, and so are those of Ask. All others are let through, except those of hostNetwork pods that the policy does not
// allow. In audit mode only Ask's calls are refused.
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

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

// hook is a place in the kernel where a program of ours is asked about a socket call.
type hook struct {
	// name is in the pins' names, the log and `check`.
	name string
	at   ebpf.AttachType
	// mapped: the address is looked for in its IPv4-mapped spelling. The kernel asks IPv6's hook when that is connected to
	// (net/ipv6/tcp_ipv6.c, tcp_v6_pre_connect), and IPv4's when it is sent to (net/ipv6/udp.c, udpv6_sendmsg).
	mapped bool
}

// hooksOf lists a family's.
func hooksOf(f imds.Family) []hook {
	if f == imds.IPv6 {
		return []hook{{"connect6", ebpf.AttachCGroupInet6Connect, false}, {"sendmsg6", ebpf.AttachCGroupUDP6Sendmsg, false}}
	}
	return []hook{
		{"connect4", ebpf.AttachCGroupInet4Connect, false},
		{"sendmsg4", ebpf.AttachCGroupUDP4Sendmsg, false},
		{"connect6-mapped", ebpf.AttachCGroupInet6Connect, true},
	}
}

// Hooks names a family's, for a person.
func Hooks(f imds.Family) (names []string) {
	for _, h := range hooksOf(f) {
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
	family imds.Family
	node   uint64 // the cookie of its network namespace
	host   policy.HostNetwork
	*maps
}

// program is what runs at the hook. Calls to the endpoint from another network namespace than the node's own, and calls of Ask, are
// counted and refused; all others are let through, but for those of pods in the node's network, if the policy has something
// against them.
func (h hook) program(w wanted) *ebpf.ProgramSpec {
	address := w.family.Endpoint().Addr()
	words, offset := h.where(address)
	code := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1)}
	for i, word := range words {
		code = append(code,
			asm.LoadMem(asm.R1, asm.R6, offset+4*int16(i), asm.Word),
			asm.JNE.Imm32(asm.R1, int32(word), "allow"),
		)
	}
	code = append(code,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.FnGetNetnsCookie.Call(),
		asm.LoadImm(asm.R1, int64(w.node), asm.DWord),
		asm.JNE.Reg(asm.R0, asm.R1, "count"),
		asm.LoadMem(asm.R1, asm.R6, socket, asm.DWord),
		asm.LoadMem(asm.R1, asm.R1, sockMark, asm.Word),
		asm.JEq.Imm32(asm.R1, probeMark, "count"),
	)
	code = append(code, w.hostCalls()...)
	code = append(code,
		asm.StoreImm(asm.RFP, -4, 0, asm.Word).WithSymbol("count"), // the only key
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
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
	return &ebpf.ProgramSpec{
		Name: "imds_guard", Type: ebpf.CGroupSockAddr, AttachType: h.at, Instructions: code, License: "Apache-2.0",
	}
}

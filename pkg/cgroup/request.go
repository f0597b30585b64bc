// The program that passes on, in audit mode, how requests begin.

package cgroup

import (
	"encoding/binary"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// mostShown is how much of a request is passed on, in bytes; must be a power of two.
const mostShown = 512

// The offsets in struct __sk_buff of the packet's length, and of its protocol in network byte order (include/uapi/linux/bpf.h).
const (
	skbLen      = 0
	skbProtocol = 16
)

// Offsets in the headers (RFC 791, RFC 8200, RFC 9293), in bytes.
const (
	ip4Protocol    = 9
	ip4Destination = 16
	ip4Length      = 20 // without options
	ip6Next        = 6
	ip6Destination = 24
	ip6Length      = 40
	tcpOffset      = 12
)

// shownHead is the size of the header of what is passed on: the event's key, and how many bytes of the request follow.
const shownHead = keySize + 8

// requests is the program for packets that leave: it passes on the beginnings of requests to the endpoint, and lets every
// packet through. Answers use another hook, and are never seen.
func (w wanted) requests() asm.Instructions {
	const header = otherKey - ip6Length // on the stack
	load := func(offset asm.Register, to int16, length int32) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Reg(asm.R2, offset),
			asm.Mov.Reg(asm.R3, asm.RFP),
			asm.Add.Imm(asm.R3, int32(to)),
			asm.Mov.Imm(asm.R4, length),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "pass"),
		}
	}
	ethertype, length, protocol, destination := uint16(unix.ETH_P_IP), int32(ip4Length), int16(ip4Protocol), int16(ip4Destination)
	if w.family == imds.IPv6 {
		ethertype, length, protocol, destination = unix.ETH_P_IPV6, ip6Length, ip6Next, ip6Destination
	}
	code := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R1, asm.R6, skbProtocol, asm.Word),
		asm.JNE.Imm(asm.R1, int32(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, ethertype))), "pass"),
		asm.Mov.Imm(asm.R7, 0),
	}
	code = append(code, load(asm.R7, header, length)...)
	code = append(code,
		asm.LoadMem(asm.R1, asm.RFP, header+protocol, asm.Byte),
		asm.JNE.Imm(asm.R1, unix.IPPROTO_TCP, "pass"),
	)
	for bytes := w.family.Endpoint().Addr().AsSlice(); len(bytes) > 0; bytes, destination = bytes[4:], destination+4 {
		code = append(code,
			asm.LoadMem(asm.R1, asm.RFP, header+destination, asm.Word),
			asm.JNE.Imm32(asm.R1, int32(binary.NativeEndian.Uint32(bytes)), "pass"),
		)
	}
	// R7 is the offset of the TCP header, and later that of its payload.
	code = append(code, asm.Mov.Imm(asm.R7, ip6Length))
	if w.family == imds.IPv4 {
		code = append(code,
			asm.LoadMem(asm.R7, asm.RFP, header, asm.Byte),
			asm.And.Imm(asm.R7, 0xf),
			asm.LSh.Imm(asm.R7, 2),
		)
	}
	code = append(code, asm.Mov.Reg(asm.R8, asm.R7), asm.Add.Imm(asm.R8, tcpOffset))
	code = append(code, load(asm.R8, header, 1)...)
	code = append(code,
		asm.LoadMem(asm.R1, asm.RFP, header, asm.Byte),
		asm.RSh.Imm(asm.R1, 4),
		asm.LSh.Imm(asm.R1, 2),
		asm.Add.Reg(asm.R7, asm.R1),
	)
	code = append(code, load(asm.R7, header, 4)...)
	code = append(code, asm.LoadMem(asm.R1, asm.RFP, header, asm.Word))
	for _, method := range []string{"GET ", "PUT ", "HEAD"} {
		code = append(code, asm.JEq.Imm32(asm.R1, int32(binary.NativeEndian.Uint32([]byte(method))), "request"))
	}
	code = append(code,
		asm.JNE.Imm32(asm.R1, int32(binary.NativeEndian.Uint32([]byte("POST"))), "pass"),

		asm.StoreMem(asm.RFP, header, asm.R7, asm.DWord).WithSymbol("request"),
		asm.LoadImm(asm.R8, int64(w.pods), asm.DWord),
	)
	code = append(code, whose(
		asm.Instructions{asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Reg(asm.R2, asm.R7), asm.FnSkbAncestorCgroupId.Call()},
		asm.Instructions{asm.Mov.Reg(asm.R1, asm.R6), asm.FnSkbCgroupId.Call()},
	)...)
	// Askers that are let through in any mode, such as hostNetwork pods, have no attempts, so their requests are not read.
	code = append(code,
		asm.Mov.Imm(asm.R1, int32(Audited)),
		asm.StoreMem(asm.RFP, event+16, asm.R1, asm.DWord),
		asm.LoadMapPtr(asm.R1, w.attempts.FD()),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, event),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Imm(asm.R9, int32(requested)),
	)
	code = append(code, w.count(requestsMost, requestsEvery, "pass")...)
	return append(code,
		asm.LoadMem(asm.R7, asm.RFP, header, asm.DWord),
		// The length of the rest of the packet, limited to 1 to mostShown bytes, in a form that the verifier of Linux 6.1
		// understands.
		asm.LoadMem(asm.R8, asm.R6, skbLen, asm.Word),
		asm.JLE.Reg(asm.R8, asm.R7, "pass"),
		asm.Sub.Reg(asm.R8, asm.R7),
		asm.JLE.Imm(asm.R8, mostShown, "fits"),
		asm.Mov.Imm(asm.R8, mostShown),
		asm.Sub.Imm(asm.R8, 1).WithSymbol("fits"),
		asm.And.Imm(asm.R8, mostShown-1),
		asm.Add.Imm(asm.R8, 1),

		asm.LoadMapPtr(asm.R1, w.beginnings.FD()),
		asm.Mov.Imm(asm.R2, shownHead+mostShown),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "pass"),
		asm.Mov.Reg(asm.R9, asm.R0),
		asm.LoadMem(asm.R1, asm.RFP, event, asm.DWord),
		asm.StoreMem(asm.R9, 0, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, event+8, asm.DWord),
		asm.StoreMem(asm.R9, 8, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.RFP, event+16, asm.DWord),
		asm.StoreMem(asm.R9, 16, asm.R1, asm.DWord),
		asm.StoreMem(asm.R9, keySize, asm.R8, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Mov.Reg(asm.R3, asm.R9),
		asm.Add.Imm(asm.R3, shownHead),
		asm.Mov.Reg(asm.R4, asm.R8),
		asm.FnSkbLoadBytes.Call(),
		asm.JNE.Imm(asm.R0, 0, "discard"),
		asm.Mov.Reg(asm.R1, asm.R9),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
		asm.Ja.Label("pass"),
		asm.Mov.Reg(asm.R1, asm.R9).WithSymbol("discard"),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufDiscard.Call(),

		asm.Mov.Imm(asm.R0, 1).WithSymbol("pass"),
		asm.Return(),
	)
}

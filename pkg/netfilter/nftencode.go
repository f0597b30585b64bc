// Encoding one of our rules as iptables-nft would write it, for a table that iptables does not know.

package netfilter

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// register is the one that iptables-nft uses for everything.
const register = unix.NFT_REG_1

// PlainRule makes a rule that matches on an interface pattern, an address and perhaps TCP, with the target DROP or REJECT.
// with is REJECT's error, as NFTRule.RejectWith has it.
func PlainRule(f imds.Family, in string, dest netip.Addr, tcp bool, target, with string) NFTRule {
	name, wildcard := strings.CutSuffix(in, "+")
	interfaceName := []byte(name)
	if !wildcard {
		interfaceName = append(interfaceName, 0)
	}
	expressions := slices.Concat(meta(unix.NFT_META_IIFNAME), equals(interfaceName))
	if tcp {
		expressions = slices.Concat(expressions, meta(unix.NFT_META_L4PROTO), equals([]byte{unix.IPPROTO_TCP}))
	}
	offset, length := destination(f)
	expressions = slices.Concat(expressions,
		expression("payload", number(unix.NFTA_PAYLOAD_DREG, register),
			number(unix.NFTA_PAYLOAD_BASE, unix.NFT_PAYLOAD_NETWORK_HEADER), number(unix.NFTA_PAYLOAD_OFFSET, offset),
			number(unix.NFTA_PAYLOAD_LEN, length)),
		equals(dest.AsSlice()),
		expression("counter", nl.NewRtAttr(unix.NFTA_COUNTER_BYTES, make([]byte, 8)), nl.NewRtAttr(unix.NFTA_COUNTER_PACKETS, make([]byte, 8))))
	if target == "REJECT" {
		info := binary.NativeEndian.AppendUint32(nil, rejectCodes(f)[with])
		expressions = append(expressions, expression("target", nl.NewRtAttr(unix.NFTA_TARGET_NAME, nl.ZeroTerminated(target)),
			number(unix.NFTA_TARGET_REV, 0), nl.NewRtAttr(unix.NFTA_TARGET_INFO, append(info, 0, 0, 0, 0)))...) // aligned to 8
	} else {
		verdict := nl.NewRtAttr(unix.NFTA_DATA_VERDICT, nil)
		verdict.AddChild(number(unix.NFTA_VERDICT_CODE, nfDrop))
		data := nl.NewRtAttr(unix.NFTA_IMMEDIATE_DATA, nil)
		data.AddChild(verdict)
		expressions = append(expressions, expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT), data)...)
	}
	return parseNFTRule(f, expressions)
}

func number(kind int, value uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.BEUint32Attr(value)) }

func meta(key uint32) []byte {
	return expression("meta", number(unix.NFTA_META_KEY, key), number(unix.NFTA_META_DREG, register))
}

func equals(value []byte) []byte {
	data := nl.NewRtAttr(unix.NFTA_CMP_DATA, nil)
	data.AddRtAttr(unix.NFTA_DATA_VALUE, value)
	return expression("cmp", number(unix.NFTA_CMP_SREG, register), number(unix.NFTA_CMP_OP, unix.NFT_CMP_EQ), data)
}

// expression is one element of NFTA_RULE_EXPRESSIONS, as the kernel lists it: without the flag for nested attributes.
func expression(name string, data ...*nl.RtAttr) []byte {
	e := nl.NewRtAttr(unix.NFTA_LIST_ELEM, nil)
	e.AddRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(name))
	nested := nl.NewRtAttr(unix.NFTA_EXPR_DATA, nil)
	for _, d := range data {
		nested.AddChild(d)
	}
	e.AddChild(nested)
	return e.Serialize()
}

// Parsing one nftables rule, as far as needed to tell iptables-nft's rules from others.

package netfilter

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/nlattr"
)

// NFTRule is one rule of an NFTChain.
type NFTRule struct {
	// Handle is the kernel's number for the rule. It is not reused while the table exists.
	Handle uint64
	// Position is how many rules stand above.
	Position int
	// Odd: the rule was not written by iptables-nft and contains an expression that iptables-nft omits or misprints when it
	// lists the rule. Seen with 1.8.9: `ip daddr > 10.0.0.1 accept` is listed as `-d 10.0.0.1/32 -j ACCEPT`, a set lookup as no
	// match at all, and two matches of one field as the second alone, with the negation of the first.
	Odd bool
	// Jump: the verdict is a jump or goto. nft allows chains called DROP or LOG, and iptables-nft lists a jump to one like the
	// target of that name.
	Jump bool
	// Stops: every packet that the rule matches is stopped. Never set together with Odd.
	Stops bool
	// Plain: the rule matches on In and Dest, both set, possibly on TCP, and on nothing else, and stops the packet. Target is
	// DROP or REJECT. The following fields are meaningful only then.
	Plain      bool
	In         string // an interface pattern in iptables syntax
	Dest       netip.Addr
	TCP        bool
	Target     string
	RejectWith string // as iptables prints it, for the errors that imds-guard uses
	// Names: the Scope's address occurs somewhere in the rule.
	Names bool
	// Packets is the rule's packet counter.
	Packets uint64
	// Expressions is the rule in the kernel's format, for Replace.
	Expressions []byte
}

// load is what a load expression put into the register.
type load int

const (
	loadOther load = iota
	loadIn
	loadInIndex
	loadDest
	loadDestPart // its first bytes, for a prefix
	loadProtocol
	loadPorts
)

// loaded is the last load expression: what it loads, how many bytes, and into which register.
type loaded struct {
	what     load
	size     int // 0 if it is not known
	register uint32
	compared bool
}

// parseNFTRule reads a rule's expressions (linux/netfilter/nf_tables.h). iptables-nft writes and lists correctly
// (iptables/nft.c and nft-shared.c): loads of addresses, interfaces, protocols and ports, comparisons of them for equality,
// ranges of ports, xtables matches and targets, a counter, and a verdict. Everything else makes the rule odd.
func parseNFTRule(f imds.Family, expressions []byte) NFTRule {
	odd := NFTRule{Odd: true, Expressions: expressions}
	list, err := nlattr.List(expressions)
	if err != nil {
		return odd
	}
	r := NFTRule{Plain: true, Expressions: expressions}
	var last loaded
	loads := map[load]int{}
	verdicts := 0
	for _, e := range list {
		attrs, err := nlattr.Map(e.Value)
		if err != nil || verdicts > 0 { // what follows a verdict is never evaluated
			return odd
		}
		data, err := nlattr.Map(attrs[unix.NFTA_EXPR_DATA].Value)
		if err != nil {
			return odd
		}
		switch unix.ByteSliceToString(attrs[unix.NFTA_EXPR_NAME].Value) {
		case "meta":
			last = metaLoad(data)
			loads[last.what]++
		case "payload":
			last = loaded{
				what: payloadLoad(f, data), size: int(be32(data[unix.NFTA_PAYLOAD_LEN])), register: be32(data[unix.NFTA_PAYLOAD_DREG]),
			}
			loads[last.what]++
		case "cmp":
			equal := be32(data[unix.NFTA_CMP_OP]) == unix.NFT_CMP_EQ
			value, ok := last.comparedWith(data)
			if !ok || !equal && be32(data[unix.NFTA_CMP_OP]) != unix.NFT_CMP_NEQ && last.what != loadPorts {
				return odd
			}
			last.compared = true
			r.Plain = r.Plain && equal && r.compare(last.what, value)
		case "range":
			if last.what != loadPorts {
				return odd
			}
			r.Plain = false
		case "counter":
			r.Packets = be64(data[unix.NFTA_COUNTER_PACKETS])
		case "immediate":
			code, ok := verdictOf(data)
			if !ok {
				return odd
			}
			verdicts++
			r.Target = "DROP"
			r.Stops = code == nfDrop
			r.Jump = code == unix.NFT_JUMP || code == unix.NFT_GOTO
			r.Plain = r.Plain && r.Stops
		case "target":
			verdicts++
			r.Target = unix.ByteSliceToString(data[unix.NFTA_TARGET_NAME].Value)
			r.Stops = r.Target == "REJECT"
			r.RejectWith = rejectWith(f, data[unix.NFTA_TARGET_INFO].Value)
		case "bitwise":
			if !isMask(data) || last.what == loadIn || last.what == loadInIndex { // an interface is never masked
				return odd
			}
			last.register = be32(data[unix.NFTA_BITWISE_DREG])
			r.Plain = false
		case "match", "limit", "log":
			r.Plain = false
		default:
			return odd
		}
	}
	if loads[loadIn]+loads[loadInIndex] > 1 || loads[loadProtocol] > 1 || loads[loadDest]+loads[loadDestPart] > 1 {
		return odd
	}
	r.Plain = r.Plain && r.In != "" && r.Dest.IsValid() && r.Stops
	return r
}

// comparedWith returns the value that a comparison compares the last load with; false if iptables-nft would not write the
// comparison, or not print it correctly.
func (l loaded) comparedWith(data map[uint16]syscall.NetlinkRouteAttr) (value []byte, ok bool) {
	nested, err := nlattr.Map(data[unix.NFTA_CMP_DATA].Value)
	if err != nil || l.compared || be32(data[unix.NFTA_CMP_SREG]) != l.register {
		return nil, false
	}
	value = nested[unix.NFTA_DATA_VALUE].Value
	switch {
	case l.what == loadIn:
		// nft's wildcard is an asterisk: for nft `eni+` is the name of a single interface, which iptables prints like its own
		// pattern.
		return value, !bytes.Contains(value, []byte("+"))
	case l.size > 0:
		return value, len(value) == l.size
	}
	return value, true
}

// isMask reports whether a bitwise expression does nothing but mask, as for a prefix: iptables-nft ignores anything else that
// it may do.
func isMask(data map[uint16]syscall.NetlinkRouteAttr) bool {
	xor, err := nlattr.Map(data[unix.NFTA_BITWISE_XOR].Value)
	const operation = 6 // NFTA_BITWISE_OP, linux/netfilter/nf_tables.h; zero is NFT_BITWISE_MASK_XOR
	return err == nil && be32(data[operation]) == 0 && len(bytes.Trim(xor[unix.NFTA_DATA_VALUE].Value, "\x00")) == 0
}

// metaLoad returns what a meta expression loads.
func metaLoad(data map[uint16]syscall.NetlinkRouteAttr) loaded {
	l := loaded{register: be32(data[unix.NFTA_META_DREG])}
	switch be32(data[unix.NFTA_META_KEY]) {
	case unix.NFT_META_IIFNAME:
		l.what = loadIn
	case unix.NFT_META_IIF:
		l.what, l.size = loadInIndex, 4
	case unix.NFT_META_L4PROTO:
		l.what, l.size = loadProtocol, 1
	}
	return l
}

// destination returns the offset and length of the destination address in a header: RFC 791, RFC 8200.
func destination(f imds.Family) (offset, length uint32) {
	if f == imds.IPv6 {
		return 24, 16
	}
	return 16, 4
}

// payloadLoad returns what a payload expression loads.
func payloadLoad(f imds.Family, data map[uint16]syscall.NetlinkRouteAttr) load {
	offset, length := destination(f)
	switch base := be32(data[unix.NFTA_PAYLOAD_BASE]); {
	case base == unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		return loadPorts
	case base != unix.NFT_PAYLOAD_NETWORK_HEADER || be32(data[unix.NFTA_PAYLOAD_OFFSET]) != offset:
		return loadOther
	case be32(data[unix.NFTA_PAYLOAD_LEN]) == length:
		return loadDest
	}
	return loadDestPart
}

// compare records what an equality requires and reports whether a plain rule may contain it.
func (r *NFTRule) compare(last load, value []byte) bool {
	switch last {
	case loadIn:
		// A wildcard compares only the prefix; a whole name is compared with its terminating zero.
		r.In = unix.ByteSliceToString(value)
		if len(r.In) == len(value) {
			r.In += "+"
		}
		return true
	case loadDest:
		dest, ok := netip.AddrFromSlice(value)
		r.Dest = dest
		return ok
	case loadProtocol:
		r.TCP = len(value) == 1 && value[0] == unix.IPPROTO_TCP
		return r.TCP
	}
	return false
}

// nfDrop is NF_DROP (linux/netfilter.h).
const nfDrop = 0

// verdictOf returns the verdict of an immediate expression, such as NF_DROP, NF_ACCEPT or NFT_JUMP; false if it has none.
func verdictOf(data map[uint16]syscall.NetlinkRouteAttr) (code int32, ok bool) {
	value, err := nlattr.Map(data[unix.NFTA_IMMEDIATE_DATA].Value)
	if err != nil {
		return 0, false
	}
	verdict, err := nlattr.Map(value[unix.NFTA_DATA_VERDICT].Value)
	if err != nil {
		return 0, false
	}
	attr := verdict[unix.NFTA_VERDICT_CODE]
	return int32(be32(attr)), len(attr.Value) == 4
}

// rejectCodes are the errors of linux/netfilter_ipv4/ipt_REJECT.h and linux/netfilter_ipv6/ip6t_REJECT.h that imds-guard uses.
func rejectCodes(f imds.Family) map[string]uint32 {
	if f == imds.IPv6 {
		return map[string]uint32{"icmp6-port-unreachable": 4, "tcp-reset": 6}
	}
	return map[string]uint32{"icmp-port-unreachable": 3, "tcp-reset": 7}
}

// rejectWith returns the error that a REJECT answers with, by its name or else by its number.
func rejectWith(f imds.Family, info []byte) string {
	if len(info) < 4 {
		return ""
	}
	with := binary.NativeEndian.Uint32(info)
	for name, code := range rejectCodes(f) {
		if code == with {
			return name
		}
	}
	return strconv.Itoa(int(with))
}

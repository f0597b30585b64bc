// One nftables rule, as far as a rule of iptables-nft has to be told from others.
package netfilter

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// NFTRule is one rule of an NFTChain.
type NFTRule struct {
	// Odd: the rule was not written by iptables-nft and has an expression that iptables-nft leaves out or misprints
	// when it lists the rule. Seen with 1.8.9: `ip daddr > 10.0.0.1 accept` is listed as `-d 10.0.0.1/32 -j ACCEPT`,
	// a set lookup as no match at all, and of two matches of one field the second alone, under the negation of the
	// first.
	Odd bool
	// Plain: the rule matches on In and Dest, both set, perhaps on TCP, and on nothing else, and Target is DROP or REJECT.
	// These are meaningful only then.
	Plain  bool
	In     string // an interface pattern in iptables syntax
	Dest   netip.Addr
	TCP    bool
	Target string
	// Expressions is the rule as the kernel has it, for PutBack.
	Expressions []byte
}

// load is what the last load expression put into the register.
type load int

const (
	loadOther load = iota
	loadIn
	loadDest
	loadDestPart // its first bytes, for a prefix
	loadProtocol
	loadPorts
)

// parseNFTRule reads a rule's expressions (linux/netfilter/nf_tables.h). What iptables-nft writes and lists as it is
// (iptables/nft.c and nft-shared.c) are loads of addresses, interfaces, protocols and ports, comparisons of them for
// equality, ranges of ports, xtables matches and targets, a counter, and a verdict; everything else makes the rule odd.
func parseNFTRule(f enforce.Family, expressions []byte) NFTRule {
	odd := NFTRule{Odd: true}
	list, err := parseList(expressions)
	if err != nil {
		return odd
	}
	r := NFTRule{Plain: true, Expressions: expressions}
	last := loadOther
	loads := map[load]int{}
	for _, e := range list {
		attrs, err := parseAttrs(e.Value)
		if err != nil {
			return odd
		}
		data, err := parseAttrs(attrs[unix.NFTA_EXPR_DATA].Value)
		if err != nil {
			return odd
		}
		switch unix.ByteSliceToString(attrs[unix.NFTA_EXPR_NAME].Value) {
		case "meta":
			last = loadOther
			switch be32(data[unix.NFTA_META_KEY]) {
			case unix.NFT_META_IIFNAME, unix.NFT_META_IIF:
				last = loadIn
			case unix.NFT_META_L4PROTO:
				last = loadProtocol
			}
			loads[last]++
		case "payload":
			last = payloadLoad(f, data)
			loads[last]++
		case "cmp":
			equal := be32(data[unix.NFTA_CMP_OP]) == unix.NFT_CMP_EQ
			if !equal && be32(data[unix.NFTA_CMP_OP]) != unix.NFT_CMP_NEQ && last != loadPorts {
				return odd
			}
			r.Plain = r.Plain && equal && r.compare(last, data)
		case "range":
			if last != loadPorts {
				return odd
			}
			r.Plain = false
		case "counter":
		case "immediate":
			r.Target = "DROP"
			r.Plain = r.Plain && isDrop(data)
		case "target":
			r.Target = unix.ByteSliceToString(data[unix.NFTA_TARGET_NAME].Value)
		case "bitwise", "match", "limit", "log":
			r.Plain = false
		default:
			return odd
		}
	}
	if loads[loadIn] > 1 || loads[loadProtocol] > 1 || loads[loadDest]+loads[loadDestPart] > 1 {
		return odd
	}
	r.Plain = r.Plain && r.In != "" && r.Dest.IsValid() && (r.Target == "DROP" || r.Target == "REJECT")
	return r
}

// payloadLoad says what a payload expression loads. The destination address is at byte 16 of the IPv4 header (RFC 791)
// and at byte 24 of the IPv6 header (RFC 8200).
func payloadLoad(f enforce.Family, data map[uint16]syscall.NetlinkRouteAttr) load {
	offset, length := uint32(16), uint32(4)
	if f == enforce.IPv6 {
		offset, length = 24, 16
	}
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

// compare notes what an equality asks for and reports whether it is one of those that a plain rule has.
func (r *NFTRule) compare(last load, data map[uint16]syscall.NetlinkRouteAttr) bool {
	nested, err := parseAttrs(data[unix.NFTA_CMP_DATA].Value)
	if err != nil {
		return false
	}
	value := nested[unix.NFTA_DATA_VALUE].Value
	switch last {
	case loadIn:
		// A wildcard is a comparison of the prefix alone, a whole name is compared with its terminating zero. (An
		// interface given by index, which iptables never writes, makes no name that could be ours.)
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

// isDrop reports whether an immediate expression is the verdict drop (NF_DROP, linux/netfilter.h).
func isDrop(data map[uint16]syscall.NetlinkRouteAttr) bool {
	value, err := parseAttrs(data[unix.NFTA_IMMEDIATE_DATA].Value)
	if err != nil {
		return false
	}
	verdict, err := parseAttrs(value[unix.NFTA_DATA_VERDICT].Value)
	if err != nil {
		return false
	}
	code := verdict[unix.NFTA_VERDICT_CODE].Value
	return len(code) == 4 && binary.BigEndian.Uint32(code) == 0
}

// be32 is a numeric attribute of nftables, which are in network byte order; 0 if it is absent.
func be32(a syscall.NetlinkRouteAttr) uint32 {
	if len(a.Value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.Value)
}

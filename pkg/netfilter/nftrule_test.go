package netfilter

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/nlattr"
)

// written are rules as iptables-nft 1.8.9 has written them and Linux 6.18 lists them, in each family:
// `-i eni+ -d ENDPOINT -j DROP` and `-i eni0 -d ENDPOINT -p tcp -j REJECT --reject-with tcp-reset`.
var written = map[imds.Family][]string{
	imds.IPv4: {
		"24000100090001006d6574610000000014000200080002000000000608000100000000012c00010008000100636d700020000200080001000000000108000200000000000c00030007000100656e6900340001000c0001007061796c6f6164002400020008000100000000010800020000000001080003000000001008000400000000042c00010008000100636d700020000200080001000000000108000200000000000c00030008000100a9fea9fe2c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c0002000800010000000000",
		"24000100090001006d6574610000000014000200080002000000000608000100000000013000010008000100636d700024000200080001000000000108000200000000001000030009000100656e69300000000024000100090001006d6574610000000014000200080002000000001008000100000000012c00010008000100636d700020000200080001000000000108000200000000000c0003000500010006000000340001000c0001007061796c6f6164002400020008000100000000010800020000000001080003000000001008000400000000042c00010008000100636d700020000200080001000000000108000200000000000c00030008000100a9fea9fe2c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000340001000b0001007461726765740000240002000b00010052454a454354000008000200000000000c0003000700000000000000",
	},
	imds.IPv6: {
		"24000100090001006d6574610000000014000200080002000000000608000100000000012c00010008000100636d700020000200080001000000000108000200000000000c00030007000100656e6900340001000c0001007061796c6f6164002400020008000100000000010800020000000001080003000000001808000400000000103800010008000100636d70002c000200080001000000000108000200000000001800030014000100fd000ec20000000000000000000002542c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c0002000800010000000000",
		"24000100090001006d6574610000000014000200080002000000000608000100000000013000010008000100636d700024000200080001000000000108000200000000001000030009000100656e69300000000024000100090001006d6574610000000014000200080002000000001008000100000000012c00010008000100636d700020000200080001000000000108000200000000000c0003000500010006000000340001000c0001007061796c6f6164002400020008000100000000010800020000000001080003000000001808000400000000103800010008000100636d70002c000200080001000000000108000200000000001800030014000100fd000ec20000000000000000000002542c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000340001000b0001007461726765740000240002000b00010052454a454354000008000200000000000c0003000600000000000000",
	},
}

func writtenBytes(t testing.TB, f imds.Family, i int) []byte {
	t.Helper()
	b, err := hex.DecodeString(written[f][i])
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// packet is what a rule of ours looks at.
type packet struct {
	in    string
	dest  netip.Addr
	proto byte
}

// stops evaluates a rule as the kernel would, as far as this little interpreter knows the expressions
// (net/netfilter/nf_tables_core.c, nft_do_chain), and reports whether it stops the packet. It shares no code with the parser
// except for the attributes.
func stops(f imds.Family, expressions []byte, p packet) (stopped, known bool) {
	list, err := nlattr.List(expressions)
	if err != nil {
		return false, false
	}
	registers := map[uint32][]byte{}
	for _, e := range list {
		attrs, _ := nlattr.Map(e.Value)
		data, _ := nlattr.Map(attrs[unix.NFTA_EXPR_DATA].Value)
		switch unix.ByteSliceToString(attrs[unix.NFTA_EXPR_NAME].Value) {
		case "meta":
			register := be32(data[unix.NFTA_META_DREG])
			switch be32(data[unix.NFTA_META_KEY]) {
			case unix.NFT_META_IIFNAME:
				registers[register] = append([]byte(p.in), make([]byte, 16-len(p.in))...)
			case unix.NFT_META_L4PROTO:
				registers[register] = []byte{p.proto}
			default:
				return false, false
			}
		case "payload":
			header := append(make([]byte, 16), p.dest.AsSlice()...)
			if f == imds.IPv6 {
				header = append(make([]byte, 24), p.dest.AsSlice()...)
			}
			at, size := be32(data[unix.NFTA_PAYLOAD_OFFSET]), be32(data[unix.NFTA_PAYLOAD_LEN])
			if be32(data[unix.NFTA_PAYLOAD_BASE]) != unix.NFT_PAYLOAD_NETWORK_HEADER || uint64(at)+uint64(size) > uint64(len(header)) {
				return false, false
			}
			registers[be32(data[unix.NFTA_PAYLOAD_DREG])] = header[at : at+size]
		case "cmp":
			value, _ := nlattr.Map(data[unix.NFTA_CMP_DATA].Value)
			want, have := value[unix.NFTA_DATA_VALUE].Value, registers[be32(data[unix.NFTA_CMP_SREG])]
			if len(want) > len(have) || len(want) == 0 {
				return false, false
			}
			if equal := bytes.Equal(have[:len(want)], want); equal != (be32(data[unix.NFTA_CMP_OP]) == unix.NFT_CMP_EQ) {
				return false, true
			}
		case "counter":
		case "target":
			return unix.ByteSliceToString(data[unix.NFTA_TARGET_NAME].Value) == "REJECT", true
		case "immediate":
			code, ok := verdictOf(data)
			return code == nfDrop, ok
		default:
			return false, false
		}
	}
	return false, true
}

// agree compares what the parser says about a rule with what the rule does.
func agree(t *testing.T, f imds.Family, expressions []byte) {
	t.Helper()
	r := parseNFTRule(f, expressions)
	if !r.Plain {
		return
	}
	if r.Odd || r.Jump || !r.Stops {
		t.Errorf("%x: %+v", expressions, r)
	}
	prefix, wildcard := strings.CutSuffix(r.In, "+")
	if len(prefix) > 14 || !wildcard && len(r.In) > 15 {
		return
	}
	hit := packet{prefix, r.Dest, unix.IPPROTO_TCP}
	if wildcard {
		hit.in += "x"
	}
	longer, elsewhere, udp := hit, hit, hit
	longer.in = "?" + prefix
	elsewhere.dest = r.Dest.Next()
	udp.proto = unix.IPPROTO_UDP
	for _, c := range []struct {
		what string
		p    packet
		want bool
	}{{"its packet", hit, true}, {"another interface", longer, false}, {"another address", elsewhere, false}, {"UDP", udp, !r.TCP}} {
		if !c.p.dest.IsValid() {
			continue
		}
		if stopped, known := stops(f, expressions, c.p); !known || stopped != c.want {
			t.Errorf("%x is read as %+v, and for %s it stops %t, known %t", expressions, r, c.what, stopped, known)
		}
	}
}

// What iptables-nft writes is read as what it does.
func TestWrittenRules(t *testing.T) {
	for f := range written {
		for i := range written[f] {
			b := writtenBytes(t, f, i)
			if r := parseNFTRule(f, b); !r.Plain || r.TCP != (i == 1) || r.In != []string{"eni+", "eni0"}[i] || r.Dest != f.Endpoint().Addr() {
				t.Errorf("%s %d: %+v", f, i, r)
			}
			agree(t, f, b)
		}
	}
}

// What is encoded for our own table is what iptables-nft would have written, byte for byte.
func TestPlainRule(t *testing.T) {
	for f := range written {
		dest := f.Endpoint().Addr()
		for i, r := range []NFTRule{
			PlainRule(f, "eni+", dest, false, "DROP", ""),
			PlainRule(f, "eni0", dest, true, "REJECT", "tcp-reset"),
		} {
			if want := writtenBytes(t, f, i); !bytes.Equal(r.Expressions, want) {
				t.Errorf("%s %d:\n%x\nwant\n%x", f, i, r.Expressions, want)
			}
			if !r.Plain || r.TCP != (i == 1) {
				t.Errorf("%s %d: %+v", f, i, r)
			}
		}
	}
}

// A rule that is not what it seems: registers, verdict or order differ.
func TestForgedRules(t *testing.T) {
	for f := range written {
		plain := writtenBytes(t, f, 0)
		list, err := nlattr.List(plain)
		if err != nil {
			t.Fatal(err)
		}
		at := func(find string, nth int) int {
			from := 0
			for ; nth > 0; nth-- {
				from += bytes.Index(plain[from:], []byte(find)) + 1
			}
			return from + bytes.Index(plain[from:], []byte(find))
		}
		forge := func(name string, change func(b []byte) []byte) {
			b := change(bytes.Clone(plain))
			if r := parseNFTRule(f, b); r.Plain {
				t.Errorf("%s: %s is read as %+v", f, name, r)
			}
			agree(t, f, b)
		}
		forge("an accept", func(b []byte) []byte { b[len(b)-1] = 1; return b })
		forge("a jump", func(b []byte) []byte { copy(b[len(b)-4:], "\xff\xff\xff\xfd"); return b })
		forge("a comparison of another register", func(b []byte) []byte { b[at("cmp", 0)+15] = 2; return b })
		forge("an inequality", func(b []byte) []byte { b[at("cmp", 1)+23] = 1; return b })
		forge("the source address", func(b []byte) []byte { b[at("payload", 0)+35] -= 4; return b })
		forge("a plus in the name, which is no wildcard to nft", func(b []byte) []byte { b[bytes.Index(b, []byte("eni"))+2] = '+'; return b })
		forge("a comparison with less than was loaded", func(b []byte) []byte { b[at("payload", 0)+43] -= 2; return b })
		forge("a masked interface", func(b []byte) []byte {
			data := func(kind int, value byte) *nl.RtAttr {
				d := nl.NewRtAttr(kind, nil)
				d.AddRtAttr(unix.NFTA_DATA_VALUE, bytes.Repeat([]byte{value}, 16))
				return d
			}
			mask := expression("bitwise", number(unix.NFTA_BITWISE_SREG, register), number(unix.NFTA_BITWISE_DREG, register),
				number(unix.NFTA_BITWISE_LEN, 16), data(unix.NFTA_BITWISE_MASK, 1), data(unix.NFTA_BITWISE_XOR, 0))
			first := 4 + len(list[0].Value)
			return slices.Concat(b[:first], mask, b[first:])
		})
		forge("the verdict first", func(b []byte) []byte {
			last := len(b) - (4 + len(list[len(list)-1].Value))
			return append(bytes.Clone(b[last:]), b[:last]...)
		})
		forge("no verdict", func(b []byte) []byte { return b[:len(b)-(4+len(list[len(list)-1].Value))] })
	}
}

// FuzzParseNFTRule feeds the parser what no kernel sends: it must not panic, and what it takes for a plain rule must do just
// what it says.
func FuzzParseNFTRule(f *testing.F) {
	f.Add([]byte{})
	for family := range written {
		for i := range written[family] {
			f.Add(writtenBytes(f, family, i))
		}
	}
	f.Fuzz(func(t *testing.T, expressions []byte) {
		for _, family := range imds.Families {
			agree(t, family, expressions)
		}
	})
}

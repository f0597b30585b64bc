package netfilter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// The expressions that rules are made of here, beside those of nftencode.go.

func compared(from, op uint32, value []byte) []byte {
	data := nl.NewRtAttr(unix.NFTA_CMP_DATA, nil)
	data.AddRtAttr(unix.NFTA_DATA_VALUE, value)
	return expression("cmp", number(unix.NFTA_CMP_SREG, from), number(unix.NFTA_CMP_OP, op), data)
}

func payload(base, offset, length uint32) []byte {
	return expression("payload", number(unix.NFTA_PAYLOAD_DREG, register), number(unix.NFTA_PAYLOAD_BASE, base),
		number(unix.NFTA_PAYLOAD_OFFSET, offset), number(unix.NFTA_PAYLOAD_LEN, length))
}

func counter(packets uint64) []byte {
	return expression("counter", nl.NewRtAttr(unix.NFTA_COUNTER_BYTES, make([]byte, 8)),
		nl.NewRtAttr(unix.NFTA_COUNTER_PACKETS, binary.BigEndian.AppendUint64(nil, packets)))
}

// verdict has its code in a given number of bytes.
func verdict(code int32, size int) []byte {
	v := nl.NewRtAttr(unix.NFTA_DATA_VERDICT, nil)
	v.AddRtAttr(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code))[:size])
	data := nl.NewRtAttr(unix.NFTA_IMMEDIATE_DATA, nil)
	data.AddChild(v)
	return expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, unix.NFT_REG_VERDICT), data)
}

func target(name string, info []byte) []byte {
	return expression("target", nl.NewRtAttr(unix.NFTA_TARGET_NAME, nl.ZeroTerminated(name)), nl.NewRtAttr(unix.NFTA_TARGET_INFO, info))
}

func mask(into, operation uint32, xor []byte) []byte {
	x := nl.NewRtAttr(unix.NFTA_BITWISE_XOR, nil)
	x.AddRtAttr(unix.NFTA_DATA_VALUE, xor)
	return expression("bitwise", number(unix.NFTA_BITWISE_SREG, register), number(unix.NFTA_BITWISE_DREG, into), number(6, operation), x)
}

// How rules made of these expressions are parsed. Each is tried in both families.
func TestExpressions(t *testing.T) {
	type parts = [][]byte
	const (
		drop, accept, queue      = 0, 1, 3
		jump, goTo, back         = -3, -4, -5 // NFT_JUMP, NFT_GOTO, NFT_RETURN
		eq, neq, lt              = unix.NFT_CMP_EQ, unix.NFT_CMP_NEQ, unix.NFT_CMP_LT
		network, transport, link = unix.NFT_PAYLOAD_NETWORK_HEADER, unix.NFT_PAYLOAD_TRANSPORT_HEADER, unix.NFT_PAYLOAD_LL_HEADER
	)
	for f := range written {
		offset, size := uint32(16), uint32(4)
		unreachable, reset := uint32(3), uint32(7)
		unreachableName := "icmp-port-unreachable"
		if f == imds.IPv6 {
			offset, size = 24, 16
			unreachable, reset, unreachableName = 4, 6, "icmp6-port-unreachable"
		}
		address := f.Endpoint().Addr().AsSlice()
		loadName, loadDest := meta(unix.NFT_META_IIFNAME), payload(network, offset, size)
		in := slices.Concat(loadName, equals([]byte("eni")))
		eni0 := slices.Concat(loadName, equals([]byte("eni0\x00")))
		index := slices.Concat(meta(unix.NFT_META_IIF), equals([]byte{0, 0, 0, 2}))
		dest := slices.Concat(loadDest, equals(address))
		part := slices.Concat(payload(network, offset, 2), equals(address[:2]))
		source := slices.Concat(payload(network, offset-size, size), equals(address))
		proto := meta(unix.NFT_META_L4PROTO)
		tcp := slices.Concat(proto, equals([]byte{unix.IPPROTO_TCP}))
		udp := slices.Concat(proto, equals([]byte{unix.IPPROTO_UDP}))
		port := payload(transport, 2, 2)
		end := verdict(drop, 4)
		rejects := func(with uint32) []byte { return target("REJECT", binary.NativeEndian.AppendUint32(nil, with)) }

		plain := NFTRule{Plain: true, Stops: true, In: "eni+", Dest: f.Endpoint().Addr(), Target: "DROP"}
		with := func(change func(*NFTRule)) NFTRule { r := plain; change(&r); return r }
		stops, passes, odd := NFTRule{Stops: true}, NFTRule{}, NFTRule{Odd: true}
		for _, c := range []struct {
			name  string
			parts parts
			want  NFTRule
		}{
			{"drop", parts{in, dest, end}, plain},
			{"in another order", parts{dest, in, end}, plain},
			{"counted", parts{in, dest, counter(258), end}, with(func(r *NFTRule) { r.Packets = 258 })},
			{"a whole name", parts{eni0, dest, end}, with(func(r *NFTRule) { r.In = "eni0" })},
			{"TCP", parts{in, tcp, dest, end}, with(func(r *NFTRule) { r.TCP = true })},
			{"reject", parts{in, dest, rejects(unreachable)}, with(func(r *NFTRule) { r.Target, r.RejectWith = "REJECT", unreachableName })},
			{"reject by a reset", parts{in, tcp, dest, rejects(reset)}, with(func(r *NFTRule) { r.TCP, r.Target, r.RejectWith = true, "REJECT", "tcp-reset" })},
			{"reject by another error", parts{in, dest, rejects(2)}, with(func(r *NFTRule) { r.Target, r.RejectWith = "REJECT", "2" })},
			{"reject by an error that is not said", parts{in, dest, target("REJECT", []byte{1, 0, 0})}, with(func(r *NFTRule) { r.Target = "REJECT" })},

			{"nothing", nil, passes},
			{"no address", parts{in, end}, stops},
			{"no interface", parts{dest, end}, stops},
			{"no verdict", parts{in, dest, counter(7)}, NFTRule{Packets: 7}},
			{"accept", parts{in, dest, verdict(accept, 4)}, passes},
			{"queue", parts{in, dest, verdict(queue, 4)}, passes},
			{"return", parts{in, dest, verdict(back, 4)}, passes},
			{"jump", parts{in, dest, verdict(jump, 4)}, NFTRule{Jump: true}},
			{"goto", parts{in, dest, verdict(goTo, 4)}, NFTRule{Jump: true}},
			{"another target", parts{in, dest, target("LOG", nil)}, passes},
			{"another target, called like the verdict", parts{in, dest, target("DROP", nil)}, passes},
			{"no target's name", parts{in, dest, target("", nil)}, passes},

			{"not the address", parts{in, loadDest, compared(register, neq, address), end}, stops},
			{"not the interface", parts{loadName, compared(register, neq, []byte("eni")), dest, end}, stops},
			{"UDP", parts{in, udp, dest, end}, stops},
			{"a port", parts{in, dest, port, equals([]byte{0, 80}), end}, stops},
			{"a port below another", parts{in, dest, port, compared(register, lt, []byte{0, 80}), end}, stops},
			{"a range of ports", parts{in, dest, port, expression("range"), end}, stops},
			{"part of the address", parts{in, part, end}, stops},
			{"the source", parts{in, source, end}, stops},
			{"the source as well", parts{in, dest, source, end}, stops},
			{"a place in another header", parts{in, payload(link, offset, size), equals(address), end}, stops},
			{"the interface by its number", parts{index, dest, end}, stops},
			{"something else of the packet", parts{in, dest, meta(unix.NFT_META_MARK), equals([]byte{0, 0, 0, 1}), end}, stops},
			{"a prefix by a mask", parts{in, loadDest, mask(register, 0, make([]byte, size)), equals(address), end}, stops},
			{"a quarter of the address", parts{in, payload(network, offset, size/4), equals(address[:size/4]), end}, stops},
			{"a mask of which nothing is said", parts{in, loadDest, expression("bitwise", number(unix.NFTA_BITWISE_DREG, register)), equals(address), end}, stops},
			{"a mask into another register", parts{in, loadDest, mask(2, 0, nil), compared(2, eq, address), end}, stops},
			{"an xtables match", parts{in, dest, expression("match"), end}, stops},
			{"a limit", parts{in, dest, expression("limit"), end}, stops},
			{"a log", parts{in, dest, expression("log"), end}, stops},

			{"the address above another", parts{in, loadDest, compared(register, lt, address), end}, odd},
			{"a range of addresses", parts{in, loadDest, expression("range"), end}, odd},
			{"a range of nothing", parts{expression("range"), end}, odd},
			{"a comparison of nothing", parts{equals(address), in, dest, end}, odd},
			{"another register", parts{in, loadDest, compared(2, eq, address), end}, odd},
			{"the register before a mask", parts{in, loadDest, mask(2, 0, nil), compared(register, eq, address), end}, odd},
			{"an interface by a mask", parts{loadName, mask(register, 0, nil), equals([]byte("eni")), dest, end}, odd},
			{"an interface's number by a mask", parts{meta(unix.NFT_META_IIF), mask(register, 0, nil), equals([]byte{0, 0, 0, 2}), dest, end}, odd},
			{"a mask that flips bits", parts{in, loadDest, mask(register, 0, []byte{0, 1}), equals(address), end}, odd},
			{"a shift", parts{in, loadDest, mask(register, 1, nil), equals(address), end}, odd},
			{"two comparisons of one value", parts{in, dest, equals(address), end}, odd},
			{"less than was loaded", parts{in, loadDest, equals(address[:size-1]), end}, odd},
			{"less of a part than was loaded", parts{in, payload(network, offset, 3), equals(address[:2]), end}, odd},
			{"a protocol of two bytes", parts{in, proto, equals([]byte{unix.IPPROTO_TCP, 0}), dest, end}, odd},
			{"an interface's number of two bytes", parts{meta(unix.NFT_META_IIF), equals([]byte{0, 2}), dest, end}, odd},
			{"a plus in a name", parts{loadName, equals([]byte("eni+\x00")), dest, end}, odd},
			{"two interfaces", parts{in, eni0, dest, end}, odd},
			{"two numbers of interfaces", parts{index, index, dest, end}, odd},
			{"an interface by name and number", parts{in, index, dest, end}, odd},
			{"two protocols", parts{in, tcp, udp, dest, end}, odd},
			{"two addresses", parts{in, dest, dest, end}, odd},
			{"two parts of an address", parts{in, part, part, end}, odd},
			{"an address and a part of one", parts{in, dest, part, end}, odd},
			{"two verdicts", parts{in, dest, verdict(accept, 4), end}, odd},
			{"two targets", parts{in, dest, target("LOG", nil), end}, odd},
			{"something behind the verdict", parts{in, dest, end, counter(1)}, odd},
			{"something behind a target", parts{in, dest, rejects(unreachable), counter(1)}, odd},
			{"a verdict of two bytes", parts{in, dest, verdict(drop, 2)}, odd},
			{"a value where the verdict has to be", parts{in, dest, expression("immediate", number(unix.NFTA_IMMEDIATE_DREG, register))}, odd},
			{"a set", parts{in, expression("lookup"), end}, odd},
			{"a name that is not known", parts{in, dest, expression("cmpx"), end}, odd},
			{"what is no expression", parts{in, dest, {2, 0, 0, 0}}, odd},
			{"an expression with broken attributes", parts{in, dest, {12, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0}, end}, odd},
			{"broken data", parts{in, dest, broken("cmp", 0), end}, odd},
			{"a comparison with broken data", parts{in, loadDest, broken("cmp", unix.NFTA_CMP_DATA, number(unix.NFTA_CMP_SREG, register)), end}, odd},
			{"an interface compared with broken data", parts{loadName, broken("cmp", unix.NFTA_CMP_DATA, number(unix.NFTA_CMP_SREG, register)), dest, end}, odd},
			{"a mask with broken data", parts{in, loadDest, broken("bitwise", unix.NFTA_BITWISE_XOR, number(unix.NFTA_BITWISE_DREG, register)), equals(address), end}, odd},
			{"a verdict with broken data", parts{in, dest, broken("immediate", unix.NFTA_IMMEDIATE_DATA)}, odd},
		} {
			b := slices.Concat(c.parts...)
			got := parseNFTRule(f, b)
			if !bytes.Equal(got.Expressions, b) {
				t.Errorf("%s: %s: the expressions are %x, want %x", f, c.name, got.Expressions, b)
			}
			got.Expressions = nil
			if !c.want.Plain { // the rest is meaningless
				got = NFTRule{Odd: got.Odd, Jump: got.Jump, Stops: got.Stops, Plain: got.Plain, Packets: got.Packets}
			}
			if want := c.want; fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("%s: %s is read as %+v, want %+v", f, c.name, got, want)
			}
			agree(t, f, b)
		}
	}
}

// broken is an expression with something in its data that is no attribute, where an attribute of that kind has to be; 0 is the
// data itself.
func broken(name string, where int, others ...*nl.RtAttr) []byte {
	e := nl.NewRtAttr(unix.NFTA_LIST_ELEM, nil)
	e.AddRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(name))
	data := nl.NewRtAttr(unix.NFTA_EXPR_DATA, nil)
	for _, other := range others {
		data.AddChild(other)
	}
	if rubbish := []byte{2, 0, 0, 0}; where == 0 {
		data = nl.NewRtAttr(unix.NFTA_EXPR_DATA, rubbish)
	} else {
		data.AddRtAttr(where, rubbish)
	}
	e.AddChild(data)
	return e.Serialize()
}

// A rule is inserted with its counters at zero, and otherwise unchanged.
func TestZeroCounters(t *testing.T) {
	for f := range written {
		for i := range written[f] {
			b := writtenBytes(t, f, i)
			at := bytes.Index(b, []byte("counter\x00"))
			counted := bytes.Clone(b)
			copy(counted[at+16:], bytes.Repeat([]byte{7}, 8)) // the bytes, and behind another head the packets
			copy(counted[at+28:], bytes.Repeat([]byte{7}, 8))
			if got := parseNFTRule(f, counted); got.Packets == 0 {
				t.Fatalf("%s %d: %+v; then this test proves nothing", f, i, got)
			}
			got := zeroCounters(counted)
			want := parseNFTRule(f, b)
			read := parseNFTRule(f, got)
			if read.Packets != 0 || bytes.Contains(got, []byte{7, 7, 7}) {
				t.Errorf("%s %d: %x", f, i, got)
			}
			read.Expressions, want.Expressions = nil, nil
			if fmt.Sprint(read) != fmt.Sprint(want) {
				t.Errorf("%s %d: %+v, want %+v", f, i, read, want)
			}
			agree(t, f, got)
		}
	}
	if rubbish := []byte{2, 0, 0, 0}; !bytes.Equal(zeroCounters(rubbish), rubbish) {
		t.Error("what can't be parsed is changed")
	}
}

// The size of FORWARD's rules, whatever the other chains have, and whether anybody has written to the table.
func TestLegacySummary(t *testing.T) {
	i := LegacyInfo{HookEntry: [5]uint32{0, 0, 1000, 1500, 0}, Underflow: [5]uint32{0, 800, 1300, 1700, 0}, Entries: 4}
	if i.Forward() != 300 || !i.Empty() {
		t.Errorf("%d bytes, empty %t", i.Forward(), i.Empty())
	}
	if i.Entries = 5; i.Empty() {
		t.Error("empty with a rule")
	}
}

// The packet: a TCP segment in an IP packet in a frame.

package probe

import (
	"encoding/binary"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// segment is a TCP segment without data: the SYN of a connection or, with reset, its end.
type segment struct {
	family              imds.Family
	source, destination netip.Addr
	sourcePort          uint16
	sequence            uint32
	reset               bool
}

const (
	ethernetLen = 14
	ip4Len      = 20
	ip6Len      = 40
	tcpLen      = 20

	flagSYN, flagRST = 0x02, 0x04
)

// etherType returns the family's EtherType.
func (s segment) etherType() uint16 {
	if s.family == imds.IPv6 {
		return unix.ETH_P_IPV6
	}
	return unix.ETH_P_IP
}

// ipLen returns the length of the family's header, without options.
func (s segment) ipLen() int {
	if s.family == imds.IPv6 {
		return ip6Len
	}
	return ip4Len
}

// frame returns the segment as it appears on the wire (RFC 791, 8200, 9293).
func (s segment) frame(from, to net.HardwareAddr) []byte {
	b := make([]byte, ethernetLen+s.ipLen()+tcpLen)
	copy(b, to)
	copy(b[6:], from)
	binary.BigEndian.PutUint16(b[12:], s.etherType())

	ip := b[ethernetLen:]
	if s.family == imds.IPv6 {
		ip[0] = 6 << 4
		binary.BigEndian.PutUint16(ip[4:], tcpLen)
		ip[6], ip[7] = unix.IPPROTO_TCP, 64
		copy(ip[8:], s.source.AsSlice())
		copy(ip[24:], s.destination.AsSlice())
	} else {
		ip[0] = 4<<4 | ip4Len/4
		binary.BigEndian.PutUint16(ip[2:], ip4Len+tcpLen)
		ip[8], ip[9] = 64, unix.IPPROTO_TCP
		copy(ip[12:], s.source.AsSlice())
		copy(ip[16:], s.destination.AsSlice())
		binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ip4Len]))
	}

	tcp := ip[s.ipLen():]
	binary.BigEndian.PutUint16(tcp[0:], s.sourcePort)
	binary.BigEndian.PutUint16(tcp[2:], port)
	binary.BigEndian.PutUint32(tcp[4:], s.sequence)
	tcp[12] = tcpLen / 4 << 4
	tcp[13] = flagSYN
	if s.reset {
		binary.BigEndian.PutUint32(tcp[4:], s.sequence+1)
		tcp[13] = flagRST
	}
	binary.BigEndian.PutUint16(tcp[14:], 1<<15) // the window
	binary.BigEndian.PutUint16(tcp[16:], checksum(s.source.AsSlice(), s.destination.AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, tcpLen}, tcp))
	return b
}

// checksum computes the Internet checksum (RFC 1071) over parts of even length.
func checksum(parts ...[]byte) uint16 {
	var sum uint32
	for _, part := range parts {
		for ; len(part) > 1; part = part[2:] {
			sum += uint32(binary.BigEndian.Uint16(part))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// Watching for the packet, and for an answer to it, on all interfaces.

package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// tap is a packet socket (packet(7)) that sees one connection's first segments on any interface, coming in or going out.
// Addresses may be rewritten on the way; the sequence number is not.
type tap struct {
	fd  int
	ip  int // the length of the IP header
	syn uint32
}

func openTap(s segment) (*tap, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0) // receives nothing until it is bound
	if err != nil {
		return nil, fmt.Errorf("opening a packet socket: %w", err)
	}
	t := &tap{fd, s.ipLen(), s.sequence}
	if err = t.filter(); err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_ALL)})
	}
	if err != nil {
		t.close()
		return nil, fmt.Errorf("watching all interfaces: %w", err)
	}
	return t, nil
}

func (t *tap) close() { unix.Close(t.fd) }

// filter passes only segments that have the sequence number or acknowledge it: a node has lots of other traffic.
func (t *tap) filter() error {
	tcp := uint32(t.ip)
	code, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: tcp + 4, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: t.syn, SkipTrue: 2},
		bpf.LoadAbsolute{Off: tcp + 8, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: t.syn + 1, SkipTrue: 1},
		bpf.RetConstant{Val: 256},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return err
	}
	filters := make([]unix.SockFilter, len(code))
	for i, c := range code {
		filters[i] = unix.SockFilter{Code: c.Op, Jt: c.Jt, Jf: c.Jf, K: c.K}
	}
	return unix.SetsockoptSockFprog(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]})
}

// watch waits for an answer, until a deadline.
func (t *tap) watch(until time.Time, w *way) (s Seen, err error) {
	packet := make([]byte, 256)
	for !s.Answered {
		if err := wait(t.fd, until); errors.Is(err, errDeadline) {
			return s, nil
		} else if err != nil {
			return s, err
		}
		n, from, err := unix.Recvfrom(t.fd, packet, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return s, fmt.Errorf("reading packets: %w", err)
		}
		at, ok := from.(*unix.SockaddrLinklayer)
		if !ok || n < t.ip+tcpLen {
			continue
		}
		tcp := packet[t.ip:n]
		switch {
		case binary.BigEndian.Uint32(tcp[4:]) != t.syn:
			// When one of our own rules rejects the packet, the answer has no SYN.
			s.Answered = tcp[13]&flagSYN != 0
		case at.Pkttype == unix.PACKET_OUTGOING && !w.has(at.Ifindex):
			s.Left = nameOf(at.Ifindex)
		}
	}
	return s, nil
}

var errDeadline = errors.New("the deadline has passed")

// wait waits until there is something to read.
func wait(fd int, until time.Time) error {
	for {
		left := time.Until(until)
		if left <= 0 {
			return errDeadline
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
		switch {
		case errors.Is(err, unix.EINTR) || err == nil && n == 0:
		case err != nil:
			return fmt.Errorf("waiting for packets: %w", err)
		default:
			return nil
		}
	}
}

// nameOf returns an interface's name, for people.
func nameOf(index int) string {
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return fmt.Sprintf("interface %d", index)
}

// bigEndian returns a protocol's number in the byte order that the kernel expects.
func bigEndian(protocol uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))
}

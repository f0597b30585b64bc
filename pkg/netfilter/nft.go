// The socket for talking to nftables, and how it is used.

package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/nlattr"
)

// NFT talks to nftables. It keeps its socket open, and so stays in the network namespace of the thread that used it first.
// The reason: closing a netfilter socket waits until the kernel has destroyed what the last transaction deleted, an RCU
// grace period of 5 to 30 ms (net/netfilter/nf_tables_api.c, nft_rcv_nl_event), just when something has deleted our rule.
//
// The zero value is ready. It is not safe for concurrent use.
type NFT struct {
	opened   bool
	socket   int
	sequence uint32
	buffer   []byte // for one packet of answers
}

// answerBuffer holds the largest packet of answers; the kernel makes none over 32 KiB (netlink_recvmsg in
// net/netlink/af_netlink.c). However long a chain is, no more of it is in memory at once.
const answerBuffer = 64 << 10

// askTimeout bounds one answer of the kernel, which comes at once unless something is very wrong.
var askTimeout = unix.Timeval{Sec: 5}

func (n *NFT) open() error {
	if n.opened {
		return nil
	}
	socket, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("opening a netfilter socket: %w", err)
	}
	if err := errors.Join(
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &askTimeout),
		unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &askTimeout),
	); err != nil {
		_ = unix.Close(socket)
		return fmt.Errorf("setting the time-outs of a netfilter socket: %w", err)
	}
	n.socket, n.opened = socket, true
	if n.buffer == nil {
		n.buffer = make([]byte, answerBuffer)
	}
	return nil
}

// Close closes the socket; the next question opens another.
func (n *NFT) Close() {
	if n.opened {
		_ = unix.Close(n.socket)
	}
	n.opened = false
}

// request makes a message about a family's tables, and numbers it.
func (n *NFT) request(f imds.Family, message, flags int, attrs ...*nl.RtAttr) []byte {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags)
	n.sequence++
	req.Seq = n.sequence
	req.AddData(&nl.Nfgenmsg{NfgenFamily: nfProto(f), Version: unix.NFNETLINK_V0})
	for _, a := range attrs {
		req.AddData(a)
	}
	return req.Serialize()
}

// exchange sends messages and passes on every answer until one is the last. An answer's bytes are valid only until answer
// returns. After an error the socket is closed, since unread answers may be left in it.
func (n *NFT) exchange(messages []byte, answer func(syscall.NetlinkMessage) (last bool, err error)) error {
	if err := n.open(); err != nil {
		return err
	}
	err := n.exchangeOpened(messages, answer)
	if err != nil {
		n.Close()
	}
	return err
}

func (n *NFT) exchangeOpened(messages []byte, answer func(syscall.NetlinkMessage) (last bool, err error)) error {
	if err := unix.Sendto(n.socket, messages, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for {
		size, _, err := unix.Recvfrom(n.socket, n.buffer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		answers, err := syscall.ParseNetlinkMessage(n.buffer[:size])
		if err != nil {
			return fmt.Errorf("parsing an answer of nftables: %w", err)
		}
		for _, a := range answers {
			if last, err := answer(a); last || err != nil {
				return err
			}
		}
	}
}

// get reads one object and returns its attributes, nil if there is none. The kernel answers with one message, the object or an
// error, so no acknowledgement is requested: every packet to receive delays putting back what is lost.
func (n *NFT) get(f imds.Family, message int, attrs ...*nl.RtAttr) (object map[uint16]syscall.NetlinkRouteAttr, err error) {
	err = n.exchange(n.request(f, message, 0, attrs...), func(a syscall.NetlinkMessage) (bool, error) {
		if a.Header.Type == unix.NLMSG_ERROR {
			if err := errnoOf(a); err != nil && !errors.Is(err, unix.ENOENT) {
				return true, err
			}
			return true, nil
		}
		object, err = parseNFT(append([]byte(nil), a.Data...))
		return true, err
	})
	return object, err
}

// errnoOf returns the error in an acknowledgement or at the end of a dump; nil for success.
func errnoOf(a syscall.NetlinkMessage) error {
	if len(a.Data) < 4 {
		return nil
	}
	if errno := int32(binary.NativeEndian.Uint32(a.Data)); errno < 0 {
		return syscall.Errno(-errno)
	}
	return nil
}

// nfProto is the nfgen_family of a family's tables (NFPROTO_IPV4, NFPROTO_IPV6).
func nfProto(f imds.Family) uint8 {
	if f == imds.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

func nameAttr(kind int, name string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(name)) }

// parseNFT parses the attributes of an answer, behind its nfgenmsg.
func parseNFT(answer []byte) (map[uint16]syscall.NetlinkRouteAttr, error) {
	if len(answer) < nl.SizeofNfgenmsg {
		return nil, fmt.Errorf("parsing an nftables answer: %d bytes are too few", len(answer))
	}
	return nlattr.Map(answer[nl.SizeofNfgenmsg:])
}

// be32 reads a numeric attribute, which nftables stores in network byte order; 0 if it is absent.
func be32(a syscall.NetlinkRouteAttr) uint32 {
	if len(a.Value) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a.Value)
}

// be64 is be32 for 64 bits.
func be64(a syscall.NetlinkRouteAttr) uint64 {
	if len(a.Value) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a.Value)
}

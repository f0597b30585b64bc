//go:build linux

// Counting rules by asking the kernel, in microseconds: the observers' eyes. They are independent of the guard's, and one
// socket serves for all questions: an nftables socket that is closed makes the next transaction wait.

package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// counter knows how many rules there are at the moment.
type counter interface {
	Count() (int, error)
	Close() error
}

// newCounter makes a counter for FORWARD (nft), or for the filter table (legacy), which is all that the kernel tells there.
func newCounter(n *node, f imds.Family) (counter, error) {
	if n.backend == rules.Legacy {
		return newLegacyCounter(n.Host(), f)
	}
	return newNFTCounter(n.Host(), f, "filter", "FORWARD")
}

// nftCounter counts the rules of a chain by dumping it.
type nftCounter struct {
	fd      int
	request []byte
	answer  []byte
}

func newNFTCounter(ns *testnode.Namespace, f imds.Family, table, chain string) (*nftCounter, error) {
	family := uint8(unix.NFPROTO_IPV4)
	if f == imds.IPv6 {
		family = unix.NFPROTO_IPV6
	}
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: family, Version: unix.NFNETLINK_V0})
	request.AddData(nl.NewRtAttr(unix.NFTA_RULE_TABLE, nl.ZeroTerminated(table)))
	request.AddData(nl.NewRtAttr(unix.NFTA_RULE_CHAIN, nl.ZeroTerminated(chain)))
	c := &nftCounter{request: request.Serialize(), answer: make([]byte, 1<<16)}
	err := ns.Do(func() (err error) {
		c.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening an nftables socket: %w", err)
	}
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return nil, errors.Join(fmt.Errorf("setting the time-out of an nftables socket: %w", err), c.Close())
	}
	return c, nil
}

// Count returns the number of rules, 0 if there is no such chain.
func (c *nftCounter) Count() (int, error) {
	for {
		n, interrupted, err := c.dump()
		if err != nil {
			return 0, fmt.Errorf("counting nftables rules: %w", err)
		}
		if !interrupted {
			return n, nil
		}
	}
}

// dump is one dump; interrupted means that a transaction came in between.
func (c *nftCounter) dump() (n int, interrupted bool, err error) {
	if err := unix.Sendto(c.fd, c.request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, false, err
	}
	for {
		size, _, err := unix.Recvfrom(c.fd, c.answer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, false, err
		}
		for rest := c.answer[:size]; len(rest) >= unix.SizeofNlMsghdr; {
			length := int(binary.NativeEndian.Uint32(rest))
			kind, flags := binary.NativeEndian.Uint16(rest[4:]), binary.NativeEndian.Uint16(rest[6:])
			if length < unix.SizeofNlMsghdr || length > len(rest) {
				return 0, false, fmt.Errorf("an answer is %d bytes long, of %d", length, len(rest))
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch kind {
			case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE:
				n++
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				return n, interrupted, errnoOf(rest[unix.SizeofNlMsghdr:length])
			}
			rest = rest[min(len(rest), (length+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
}

// errnoOf is the error that ends an answer. A chain that does not exist has no rules.
func errnoOf(payload []byte) error {
	if len(payload) < 4 {
		return nil
	}
	switch errno := unix.Errno(-int32(binary.NativeEndian.Uint32(payload))); errno {
	case 0, unix.ENOENT:
		return nil
	default:
		return errno
	}
}

// Close closes the socket.
func (c *nftCounter) Close() error { return unix.Close(c.fd) }

// legacyCounter counts the entries of the filter table.
type legacyCounter struct{ *netfilter.LegacySocket }

func newLegacyCounter(ns *testnode.Namespace, f imds.Family) (c legacyCounter, err error) {
	err = ns.Do(func() (err error) {
		c.LegacySocket, err = netfilter.NewLegacySocket(f)
		return err
	})
	return c, err
}

// Count returns the number of entries.
func (c legacyCounter) Count() (int, error) {
	info, err := c.Info("filter")
	return int(info.Entries), err
}

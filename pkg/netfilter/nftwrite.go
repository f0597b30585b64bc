// The one write: putting rules back that iptables-nft had written.
package netfilter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// PutBack inserts rules at the top of a chain, in this order and in one transaction, with their counters at zero. Against
// a command, which takes over a millisecond to get so far, it is quick enough to come before the process that deleted the
// rules has closed its socket, and with it taken the lock on which every later transaction waits for 5 to 30 ms (see NFT).
//
// It is an error, and nothing is done, if the chain does not exist.
func (n *NFT) PutBack(f enforce.Family, table, chain string, rules []NFTRule) error {
	if err := n.putBack(f, table, chain, rules); err != nil {
		n.Close() // an answer that was not read may be left in it
		return fmt.Errorf("putting %d nftables rules back into %s/%s (%s): %w", len(rules), table, chain, f, err)
	}
	return nil
}

func (n *NFT) putBack(f enforce.Family, table, chain string, rules []NFTRule) error {
	if err := n.open(); err != nil {
		return err
	}
	s := n.socket[unix.NETLINK_NETFILTER]
	batch := batchMark(unix.NFNL_MSG_BATCH_BEGIN)
	for i := len(rules) - 1; i >= 0; i-- { // each goes above the one before
		batch = append(batch, newRule(f, table, chain, rules[i], s)...)
	}
	batch = append(batch, batchMark(unix.NFNL_MSG_BATCH_END)...)
	if err := unix.Sendto(s.Socket.GetFd(), batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	for acknowledged := 0; acknowledged < len(rules); {
		answers, _, err := s.Socket.Receive()
		if err != nil {
			return err
		}
		for _, a := range answers {
			if a.Header.Type != unix.NLMSG_ERROR || len(a.Data) < 4 {
				return errors.New("the kernel's answer is none")
			}
			if errno := int32(binary.NativeEndian.Uint32(a.Data)); errno != 0 {
				return syscall.Errno(-errno)
			}
			acknowledged++
		}
	}
	return nil
}

// batchMark is the message that begins or ends a transaction.
func batchMark(kind int) []byte {
	req := nl.NewNetlinkRequest(kind, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0, ResId: nl.Swap16(unix.NFNL_SUBSYS_NFTABLES)})
	return req.Serialize()
}

// newRule is the message that inserts a rule at the top: without NLM_F_APPEND, NEWRULE does.
func newRule(f enforce.Family, table, chain string, rule NFTRule, s *nl.SocketHandle) []byte {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_ACK)
	s.Seq++
	req.Seq = s.Seq
	req.AddData(&nl.Nfgenmsg{NfgenFamily: nfProto(f), Version: unix.NFNETLINK_V0})
	req.AddData(nameAttr(unix.NFTA_RULE_TABLE, table))
	req.AddData(nameAttr(unix.NFTA_RULE_CHAIN, chain))
	req.AddData(nl.NewRtAttr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, zeroCounters(rule.Expressions)))
	if rule.TCP {
		// An xtables target such as REJECT with a reset asks for the protocol when it is made, and the kernel does not
		// list it.
		compat := nl.NewRtAttr(unix.NFTA_RULE_COMPAT|unix.NLA_F_NESTED, nil)
		compat.AddRtAttr(unix.NFTA_RULE_COMPAT_PROTO, nl.BEUint32Attr(unix.IPPROTO_TCP))
		compat.AddRtAttr(unix.NFTA_RULE_COMPAT_FLAGS, nl.BEUint32Attr(0))
		req.AddData(compat)
	}
	return req.Serialize()
}

// zeroCounters returns a copy of a rule's expressions in which every counter is at zero.
func zeroCounters(expressions []byte) []byte {
	var fresh []byte
	list, err := parseList(expressions)
	if err != nil {
		return expressions
	}
	for _, e := range list {
		attr := nl.NewRtAttr(int(e.Attr.Type), e.Value)
		if attrs, err := parseAttrs(e.Value); err == nil && unix.ByteSliceToString(attrs[unix.NFTA_EXPR_NAME].Value) == "counter" {
			attr = nl.NewRtAttr(int(e.Attr.Type), nil)
			attr.AddRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated("counter"))
		}
		fresh = append(fresh, attr.Serialize()...)
	}
	return fresh
}

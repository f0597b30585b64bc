// Package netfilter asks the kernel itself about iptables, without forking a command: what nftables has in FORWARD, whether
// a chain or a legacy table exists, and that something has changed. It changes nothing, but for NFT.PutBack.
//
// Every call works in the network namespace of the calling thread and needs CAP_NET_ADMIN.
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

// NFTChain is what nftables knows of a base chain that iptables-nft uses, and iptables-nft does not say.
type NFTChain struct {
	// Exists and Hooked: a chain of that name without a hook is never entered.
	Exists, Hooked bool
	// Dormant: the table's hooks are switched off (`nft add table ip filter { flags dormant; }`), its rules do nothing.
	Dormant bool
	// Rules, from the top.
	Rules []NFTRule
}

// nfProto is the nfgen_family of a family's tables (NFPROTO_IPV4, NFPROTO_IPV6).
func nfProto(f enforce.Family) uint8 {
	if f == enforce.IPv6 {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// NFT asks nftables. It keeps its socket, and with it the network namespace of the thread that asked first: every close
// of a netfilter socket waits until the kernel has destroyed what the last transaction deleted, which takes an RCU grace
// period of 5 to 30 ms (net/netfilter/nf_tables_api.c, nft_rcv_nl_event), just when somebody has deleted our rule.
//
// The zero value is ready. It is not safe for concurrent use.
type NFT struct {
	socket map[int]*nl.SocketHandle
}

// askTimeout bounds one answer of the kernel, which comes at once unless something is very wrong.
var askTimeout = unix.Timeval{Sec: 5}

func (n *NFT) open() error {
	if n.socket != nil {
		return nil
	}
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER) // to no group: a socket to ask by
	if err != nil {
		return fmt.Errorf("opening a netfilter socket: %w", err)
	}
	if err := errors.Join(s.SetSendTimeout(&askTimeout), s.SetReceiveTimeout(&askTimeout)); err != nil {
		s.Close()
		return fmt.Errorf("setting the time-outs of a netfilter socket: %w", err)
	}
	n.socket = map[int]*nl.SocketHandle{unix.NETLINK_NETFILTER: {Socket: s}}
	return nil
}

// Close closes the socket; the next question opens another.
func (n *NFT) Close() {
	for _, s := range n.socket {
		s.Close()
	}
	n.socket = nil
}

// askTries is how often a dump is made that somebody's writing interrupts, in whatever table of the namespace.
const askTries = 10

// ask asks for objects of nftables; a missing one is no error but no answer.
func (n *NFT) ask(f enforce.Family, message, flags int, attrs ...*nl.RtAttr) (answers [][]byte, err error) {
	if err := n.open(); err != nil {
		return nil, err
	}
	for range askTries {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|message, flags)
		req.Sockets = n.socket
		req.AddData(&nl.Nfgenmsg{NfgenFamily: nfProto(f), Version: unix.NFNETLINK_V0})
		for _, a := range attrs {
			req.AddData(a)
		}
		answers, err = req.Execute(unix.NETLINK_NETFILTER, 0)
		if !errors.Is(err, nl.ErrDumpInterrupted) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		n.Close() // an answer that was not read may be left in it
	}
	return answers, err
}

func nameAttr(kind int, name string) *nl.RtAttr { return nl.NewRtAttr(kind, nl.ZeroTerminated(name)) }

// parseNFT parses the attributes of an answer, behind its nfgenmsg.
func parseNFT(answer []byte) (map[uint16]syscall.NetlinkRouteAttr, error) {
	if len(answer) < nl.SizeofNfgenmsg {
		return nil, fmt.Errorf("parsing an nftables answer: %d bytes are too few", len(answer))
	}
	return parseAttrs(answer[nl.SizeofNfgenmsg:])
}

// attrTypeMask is NLA_TYPE_MASK of linux/netlink.h.
const attrTypeMask = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

// parseList parses netlink attributes in their order.
func parseList(b []byte) ([]syscall.NetlinkRouteAttr, error) {
	// nl.ParseRouteAttr steps over the padding of the last attribute whether it is there or not, and panics if not.
	padded := make([]byte, (len(b)+3)&^3)
	copy(padded, b)
	list, err := nl.ParseRouteAttr(padded)
	if err != nil {
		return nil, fmt.Errorf("parsing nftables attributes: %w", err)
	}
	return list, nil
}

// parseAttrs parses netlink attributes and strips the flags (NLA_F_NESTED …) from their types.
func parseAttrs(b []byte) (map[uint16]syscall.NetlinkRouteAttr, error) {
	list, err := parseList(b)
	if err != nil {
		return nil, err
	}
	attrs := make(map[uint16]syscall.NetlinkRouteAttr, len(list))
	for _, a := range list {
		attrs[a.Attr.Type&attrTypeMask] = a
	}
	return attrs, nil
}

// HasChain reports whether nftables has this chain in this family.
func (n *NFT) HasChain(f enforce.Family, table, chain string) (bool, error) {
	answers, err := n.ask(f, unix.NFT_MSG_GETCHAIN, 0,
		nameAttr(unix.NFTA_CHAIN_TABLE, table), nameAttr(unix.NFTA_CHAIN_NAME, chain))
	if err != nil {
		return false, fmt.Errorf("looking for nftables chain %s/%s (%s): %w", table, chain, f, err)
	}
	return len(answers) > 0, nil
}

// ReadChain reads a chain. It costs some microseconds, however many rules the other chains have.
func (n *NFT) ReadChain(f enforce.Family, table, chain string) (NFTChain, error) {
	c, err := n.readChain(f, table, chain)
	if err != nil {
		return NFTChain{}, fmt.Errorf("reading nftables chain %s/%s (%s): %w", table, chain, f, err)
	}
	return c, nil
}

func (n *NFT) readChain(f enforce.Family, table, chain string) (c NFTChain, err error) {
	answers, err := n.ask(f, unix.NFT_MSG_GETTABLE, 0, nameAttr(unix.NFTA_TABLE_NAME, table))
	if err != nil || len(answers) == 0 {
		return c, err
	}
	attrs, err := parseNFT(answers[0])
	if err != nil {
		return c, err
	}
	if flags := attrs[unix.NFTA_TABLE_FLAGS].Value; len(flags) == 4 {
		c.Dormant = binary.BigEndian.Uint32(flags)&unix.NFT_TABLE_F_DORMANT != 0
	}
	answers, err = n.ask(f, unix.NFT_MSG_GETCHAIN, 0,
		nameAttr(unix.NFTA_CHAIN_TABLE, table), nameAttr(unix.NFTA_CHAIN_NAME, chain))
	if err != nil || len(answers) == 0 {
		return c, err
	}
	attrs, err = parseNFT(answers[0])
	if err != nil {
		return c, err
	}
	c.Exists = true
	_, c.Hooked = attrs[unix.NFTA_CHAIN_HOOK]

	c.Rules, err = n.readRules(f, table, chain)
	return c, err
}

// ReadRules reads the rules of a chain alone, in a third of the time; a chain that does not exist has none.
func (n *NFT) ReadRules(f enforce.Family, table, chain string) ([]NFTRule, error) {
	rules, err := n.readRules(f, table, chain)
	if err != nil {
		return nil, fmt.Errorf("reading the nftables rules of %s/%s (%s): %w", table, chain, f, err)
	}
	return rules, nil
}

func (n *NFT) readRules(f enforce.Family, table, chain string) (rules []NFTRule, err error) {
	answers, err := n.ask(f, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP,
		nameAttr(unix.NFTA_RULE_TABLE, table), nameAttr(unix.NFTA_RULE_CHAIN, chain))
	if err != nil {
		return nil, err
	}
	for _, answer := range answers {
		attrs, err := parseNFT(answer)
		if err != nil {
			return nil, err
		}
		rules = append(rules, parseNFTRule(f, attrs[unix.NFTA_RULE_EXPRESSIONS].Value))
	}
	return rules, nil
}

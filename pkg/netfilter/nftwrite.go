// Writing to nftables: putting rules that iptables-nft had written back where they belong.

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

// Replace inserts rules at the top of a chain, in this order and with their counters at zero, and deletes the rules with the
// given handles, at most MaxDeleted, all in one transaction. If the chain or one of the handles does not exist, nothing is
// done and an error returned.
//
// A command would take over a millisecond to get that far. Replace is fast enough to be done before the process that deleted
// a rule closes its socket and thereby takes the lock on which every later transaction waits for 5 to 30 ms (see NFT). And a
// handle can only hit the rule that is meant, whereas `iptables -D` goes by what it prints.
func (n *NFT) Replace(f imds.Family, table, chain string, top []NFTRule, remove []uint64) error {
	if err := n.transact(n.changes(f, table, chain, top, remove)); err != nil {
		return fmt.Errorf("putting %d nftables rules at the top of %s/%s (%s) and deleting %d: %w",
			len(top), table, chain, f, len(remove), err)
	}
	return nil
}

// MakeTable makes a table of our own, with one chain that has these rules and the same hook as iptables' FORWARD. An existing
// table of that name is replaced in the same transaction, whatever is in it: it may have been made dormant, its chain may have
// another hook, and rules added to it by others must not accumulate.
func (n *NFT) MakeTable(f imds.Family, table, chain string, rules []NFTRule) error {
	name := nameAttr(unix.NFTA_TABLE_NAME, table)
	hook := nl.NewRtAttr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, nil)
	hook.AddRtAttr(unix.NFTA_HOOK_HOOKNUM, nl.BEUint32Attr(unix.NF_INET_FORWARD))
	hook.AddRtAttr(unix.NFTA_HOOK_PRIORITY, nl.BEUint32Attr(0)) // NF_IP_PRI_FILTER
	messages := [][]byte{
		n.request(f, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, name), // so that there is one to delete
		n.request(f, unix.NFT_MSG_DELTABLE, 0, name),
		n.request(f, unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, name),
		n.request(f, unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, nameAttr(unix.NFTA_CHAIN_TABLE, table), nameAttr(unix.NFTA_CHAIN_NAME, chain), hook,
			nameAttr(unix.NFTA_CHAIN_TYPE, "filter")),
	}
	if err := n.transact(append(messages, n.changes(f, table, chain, rules, nil)...)); err != nil {
		return fmt.Errorf("making the nftables table %s (%s) with %d rules: %w", table, f, len(rules), err)
	}
	return nil
}

// DeleteTable deletes a table with everything in it. It is not an error if there is none.
func (n *NFT) DeleteTable(f imds.Family, table string) error {
	err := n.transact([][]byte{n.request(f, unix.NFT_MSG_DELTABLE, 0, nameAttr(unix.NFTA_TABLE_NAME, table))})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting the nftables table %s (%s): %w", table, f, err)
	}
	return nil
}

// MaxDeleted bounds the deletions in one transaction. Each takes some 60 bytes, and the socket accepts at most
// net.core.wmem_default (208 KiB) at once.
const MaxDeleted = 1000

// changes returns the messages for Replace.
func (n *NFT) changes(f imds.Family, table, chain string, top []NFTRule, remove []uint64) (messages [][]byte) {
	for i := len(top) - 1; i >= 0; i-- { // each goes above the one before
		messages = append(messages, n.newRule(f, table, chain, top[i]))
	}
	for _, handle := range remove {
		messages = append(messages, n.request(f, unix.NFT_MSG_DELRULE, 0, nameAttr(unix.NFTA_RULE_TABLE, table),
			nameAttr(unix.NFTA_RULE_CHAIN, chain), nl.NewRtAttr(unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, handle))))
	}
	return messages
}

// transact sends messages as one transaction. Only the last one requests an acknowledgement (errors are reported anyway): one
// for each message could overflow the receive buffer.
func (n *NFT) transact(messages [][]byte) error {
	if len(messages) == 0 {
		return nil
	}
	last := messages[len(messages)-1]
	const flags = 6 // where struct nlmsghdr has them
	binary.NativeEndian.PutUint16(last[flags:], binary.NativeEndian.Uint16(last[flags:])|unix.NLM_F_ACK)
	batch := batchMark(unix.NFNL_MSG_BATCH_BEGIN)
	for _, m := range messages {
		batch = append(batch, m...)
	}
	batch = append(batch, batchMark(unix.NFNL_MSG_BATCH_END)...)
	return n.exchange(batch, func(a syscall.NetlinkMessage) (last bool, err error) {
		if a.Header.Type != unix.NLMSG_ERROR || len(a.Data) < 4 {
			return true, errors.New("the kernel did not acknowledge it")
		}
		return true, errnoOf(a)
	})
}

// batchMark returns the message that begins or ends a transaction.
func batchMark(kind int) []byte {
	req := nl.NewNetlinkRequest(kind, 0)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: unix.NFNETLINK_V0, ResId: nl.Swap16(unix.NFNL_SUBSYS_NFTABLES)})
	return req.Serialize()
}

// newRule returns the message that inserts a rule at the top, as NEWRULE does without NLM_F_APPEND.
func (n *NFT) newRule(f imds.Family, table, chain string, rule NFTRule) []byte {
	attrs := []*nl.RtAttr{
		nameAttr(unix.NFTA_RULE_TABLE, table),
		nameAttr(unix.NFTA_RULE_CHAIN, chain),
		nl.NewRtAttr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, zeroCounters(rule.Expressions)),
	}
	if rule.TCP {
		// An xtables target such as REJECT with a reset requires the protocol when it is created, and the kernel does not list
		// it.
		compat := nl.NewRtAttr(unix.NFTA_RULE_COMPAT|unix.NLA_F_NESTED, nil)
		compat.AddRtAttr(unix.NFTA_RULE_COMPAT_PROTO, nl.BEUint32Attr(unix.IPPROTO_TCP))
		compat.AddRtAttr(unix.NFTA_RULE_COMPAT_FLAGS, nl.BEUint32Attr(0))
		attrs = append(attrs, compat)
	}
	return n.request(f, unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE, attrs...)
}

// zeroCounters returns a copy of a rule's expressions in which every counter is at zero.
func zeroCounters(expressions []byte) []byte {
	var fresh []byte
	list, err := nlattr.List(expressions)
	if err != nil {
		return expressions
	}
	for _, e := range list {
		attr := nl.NewRtAttr(int(e.Attr.Type), e.Value)
		if attrs, err := nlattr.Map(e.Value); err == nil && unix.ByteSliceToString(attrs[unix.NFTA_EXPR_NAME].Value) == "counter" {
			attr = nl.NewRtAttr(int(e.Attr.Type), nil)
			attr.AddRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated("counter"))
		}
		fresh = append(fresh, attr.Serialize()...)
	}
	return fresh
}

// Reading one nftables chain, and no more of it than is needed.

package netfilter

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/nlattr"
)

// NFTChain is what nftables knows, and iptables-nft does not say, about a base chain that iptables-nft uses.
type NFTChain struct {
	Exists bool
	// Dormant: the table's hooks are switched off (`nft add table ip filter { flags dormant; }`), so its rules do nothing.
	Dormant bool
	// Type is empty for a chain without a hook, which no packet enters by itself. Hook is a number from linux/netfilter.h
	// (NF_INET_FORWARD), Priority one from linux/netfilter_ipv4.h (NF_IP_PRI_FILTER).
	Type     string
	Hook     uint32
	Priority int32
	// Top is the beginning of the chain: every rule down to where Scope.Enough returned true.
	Top []NFTRule
	// Below are the other rules that name the Scope's address.
	Below []NFTRule
	// Length is how many rules were seen. Incomplete says that there may be more: writes to some table in the network namespace
	// interrupted the reading again and again.
	Length     int
	Incomplete bool
}

// Rules returns all rules that were read.
func (c NFTChain) Rules() []NFTRule { return slices.Concat(c.Top, c.Below) }

// Scope says what is needed of a chain, so that a long one costs neither time nor memory.
type Scope struct {
	// Address: rules that name it are read wherever they are in the chain.
	Address netip.Addr
	// Top is how many rules to read from the top at most.
	Top int
	// Enough is called with each rule from the top on; once it returns true, rules below matter only if they name Address.
	Enough func(NFTRule) bool
}

// HasChain reports whether nftables has this chain in this family.
func (n *NFT) HasChain(f imds.Family, table, chain string) (bool, error) {
	found, err := n.getChain(f, table, chain)
	if err != nil {
		return false, fmt.Errorf("looking for nftables chain %s/%s (%s): %w", table, chain, f, err)
	}
	return found != nil, nil
}

func (n *NFT) getChain(f imds.Family, table, chain string) (map[uint16]syscall.NetlinkRouteAttr, error) {
	return n.get(f, unix.NFT_MSG_GETCHAIN, nameAttr(unix.NFTA_CHAIN_TABLE, table), nameAttr(unix.NFTA_CHAIN_NAME, chain))
}

// ReadChain reads a chain. It costs some microseconds, however many rules the other chains have.
func (n *NFT) ReadChain(f imds.Family, table, chain string, s Scope) (NFTChain, error) {
	c, err := n.readChain(f, table, chain, s)
	if err != nil {
		return NFTChain{}, fmt.Errorf("reading nftables chain %s/%s (%s): %w", table, chain, f, err)
	}
	return c, nil
}

func (n *NFT) readChain(f imds.Family, table, chain string, s Scope) (c NFTChain, err error) {
	attrs, err := n.get(f, unix.NFT_MSG_GETTABLE, nameAttr(unix.NFTA_TABLE_NAME, table))
	if err != nil || attrs == nil {
		return c, err
	}
	dormant := be32(attrs[unix.NFTA_TABLE_FLAGS])&unix.NFT_TABLE_F_DORMANT != 0
	if attrs, err = n.getChain(f, table, chain); err != nil || attrs == nil {
		return c, err
	}
	hook, err := nlattr.Map(attrs[unix.NFTA_CHAIN_HOOK].Value)
	if err != nil {
		return c, err
	}
	for range askTries {
		c, err = n.readRules(f, table, chain, s)
		if !errors.Is(err, unix.EINTR) && !c.Incomplete {
			break
		}
	}
	c.Exists, c.Dormant = true, dormant
	c.Type = unix.ByteSliceToString(attrs[unix.NFTA_CHAIN_TYPE].Value)
	c.Hook, c.Priority = be32(hook[unix.NFTA_HOOK_HOOKNUM]), int32(be32(hook[unix.NFTA_HOOK_PRIORITY]))
	return c, err
}

// askTries is how often to repeat a dump that was interrupted before Enough was satisfied.
const askTries = 10

// readRules dumps the rules once. A dump of many rules comes in several packets, and the kernel marks the first message made
// after another transaction (nl_dump_check_consistent in include/net/netlink.h): from there on, rules may be missing or
// repeated. If Enough was satisfied before that, the mark doesn't matter.
func (n *NFT) readRules(f imds.Family, table, chain string, s Scope) (c NFTChain, err error) {
	enough, cut := false, false
	address := s.Address.AsSlice()
	request := n.request(f, unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP,
		nameAttr(unix.NFTA_RULE_TABLE, table), nameAttr(unix.NFTA_RULE_CHAIN, chain))
	err = n.exchange(request, func(m syscall.NetlinkMessage) (last bool, err error) {
		cut = cut || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
		switch {
		case m.Header.Type == unix.NLMSG_DONE, m.Header.Type == unix.NLMSG_ERROR:
			return true, errnoOf(m)
		case cut:
			return false, nil // read to the end, so that the socket can be used again
		}
		position := c.Length
		c.Length++
		if (enough || position >= s.Top) && !bytes.Contains(m.Data, address) {
			return false, nil
		}
		attrs, err := parseNFT(bytes.Clone(m.Data))
		if err != nil {
			return true, err
		}
		rule := parseNFTRule(f, attrs[unix.NFTA_RULE_EXPRESSIONS].Value)
		rule.Handle, rule.Position = be64(attrs[unix.NFTA_RULE_HANDLE]), position
		// Our rules have no nft comment. One with a comment belongs to somebody else, even if it does the same.
		rule.Plain = rule.Plain && len(attrs[unix.NFTA_RULE_USERDATA].Value) == 0
		rule.Names = bytes.Contains(rule.Expressions, address)
		switch {
		case !enough && position < s.Top:
			c.Top = append(c.Top, rule)
			enough = s.Enough != nil && s.Enough(rule)
		case rule.Names:
			c.Below = append(c.Below, rule)
		}
		return false, nil
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	c.Incomplete = cut && !enough
	return c, err
}

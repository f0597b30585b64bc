// What a Table reads from its node and changes on it.

package rules

import (
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// forward is the FORWARD chain of one family, in both backends. It is the only part of the node that a Table sees: what it can
// ask of commands and of the kernel, and what it can do.
type forward interface {
	// Backend returns the backend to use now.
	Backend() Backend

	// List prints the chain as `iptables -S FORWARD -v` does.
	List(b Backend) ([]string, error)
	// Insert puts a rule at the top.
	Insert(b Backend, r Rule) error
	// Move deletes the given number of copies of each rule in remove and inserts the rules of top at the top, in order, in one
	// transaction. If a copy to be deleted is missing, nothing is done at all.
	Move(b Backend, remove map[Rule]int, top []Rule) error

	// Kernel returns what nftables has.
	Kernel(s netfilter.Scope) (netfilter.NFTChain, error)
	// Replace puts rules at the top and deletes those with the given handles, in one transaction.
	Replace(top []netfilter.NFTRule, remove []uint64) error

	// OwnKernel is Kernel for the chain in our own table (see ownTable), which MakeOwn makes or replaces.
	OwnKernel(s netfilter.Scope) (netfilter.NFTChain, error)
	MakeOwn(rules []netfilter.NFTRule) error

	// Summary returns the kernel's summary of the legacy table; ok is false while the table is not loaded.
	Summary() (info netfilter.LegacyInfo, ok bool, err error)
}

// nodeForward implements forward for this network namespace. Without a selector it can't choose a backend.
type nodeForward struct {
	family   imds.Family
	selector *Selector
	commands map[Backend]*command
	nft      netfilter.NFT
}

func newForward(f imds.Family, s *Selector) *nodeForward {
	return &nodeForward{family: f, selector: s, commands: map[Backend]*command{}}
}

// Backend implements forward.
func (n *nodeForward) Backend() Backend { return n.selector.Choose() }

// command returns a backend's command. A missing one is looked for again each time.
func (n *nodeForward) command(b Backend) (*command, error) {
	c := n.commands[b]
	if c == nil {
		var err error
		if c, err = newCommand(b, n.family); err != nil {
			return nil, err
		}
		n.commands[b] = c
	}
	if n.selector != nil {
		n.selector.ran(c)
	}
	return c, nil
}

// List implements forward.
func (n *nodeForward) List(b Backend) ([]string, error) {
	c, err := n.command(b)
	if err != nil {
		return nil, err
	}
	return c.list()
}

// Insert implements forward.
func (n *nodeForward) Insert(b Backend, r Rule) error {
	c, err := n.command(b)
	if err != nil {
		return err
	}
	return c.insert(r)
}

// Move implements forward.
func (n *nodeForward) Move(b Backend, remove map[Rule]int, top []Rule) error {
	c, err := n.command(b)
	if err != nil {
		return err
	}
	return c.replace(remove, top)
}

// Kernel implements forward.
func (n *nodeForward) Kernel(s netfilter.Scope) (netfilter.NFTChain, error) {
	return n.nft.ReadChain(n.family, tableName, chainName, s)
}

// Replace implements forward.
func (n *nodeForward) Replace(top []netfilter.NFTRule, remove []uint64) error {
	return n.nft.Replace(n.family, tableName, chainName, top, remove)
}

// OwnKernel implements forward.
func (n *nodeForward) OwnKernel(s netfilter.Scope) (netfilter.NFTChain, error) {
	return n.nft.ReadChain(n.family, ownTable, chainName, s)
}

// MakeOwn implements forward.
func (n *nodeForward) MakeOwn(rules []netfilter.NFTRule) error {
	return n.nft.MakeTable(n.family, ownTable, chainName, rules)
}

// Summary implements forward. It loads no table.
func (n *nodeForward) Summary() (info netfilter.LegacyInfo, ok bool, err error) {
	return netfilter.ReadLegacyInfo(n.family, tableName)
}

// The fallback where iptables' FORWARD has no effect, because its table was made dormant or the chain was recreated at another
// hook. It is not for us to put that right, but nothing forbids another table beside it: at the same hook, a DROP in any table
// is final, whatever the others say.

package rules

import (
	"fmt"

	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// ownTable is the nftables table that then holds the rules, in a chain with the same name as iptables'. Cleanup deletes it.
const ownTable = "imds-guard"

// lookOwn looks for the rules in our own table, because forward has no effect.
func (t *Table) lookOwn(forward kernelChain) seen {
	words := forward.useless()
	k, err := readKernel(t.forward.OwnKernel, t.family.Endpoint().Addr(), forward.want)
	if err != nil {
		return t.unreadable(err)
	}
	s := seen{kernel: k, own: true, state: layer.Enforced,
		detail: fmt.Sprintf("in a table of its own, %s, because %s", ownTable, words)}
	t.blocked.add(ownTable, k.want, k.counters())
	if !k.inPlace() || k.useless() != "" {
		s.state, s.detail = layer.Missing, words
	}
	return s
}

// repairOwn puts the rules into our own table. iptables can't do that: it only knows its own tables.
func (t *Table) repairOwn(s seen) error {
	var rules []netfilter.NFTRule
	for _, r := range s.want {
		rules = append(rules, netfilter.PlainRule(t.family, r.In, r.Dest.Addr(), r.TCP, r.Target, r.RejectWith))
	}
	err := t.forward.MakeOwn(rules)
	if err == nil {
		t.blocked.restart(ownTable)
	}
	return err
}

// cleanOwn deletes our own table.
func (r *Removed) cleanOwn(node *nodeForward, want []Rule) error {
	k, err := readKernel(node.OwnKernel, r.Family.Endpoint().Addr(), want)
	if err != nil {
		return err
	}
	r.Copies += k.Length
	return node.nft.DeleteTable(r.Family, ownTable)
}

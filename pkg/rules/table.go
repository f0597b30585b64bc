// One family's rules, kept at the top of FORWARD: looking, and repairing what the look found.

package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// LayerName is the name of this way of enforcing, as a metric label.
const LayerName = "iptables"

// Table is the layer of one family. It only touches rules that are wanted ones.
//
// It remembers from earlier looks only what a single look can't tell: the wanted rules in the kernel's format, so that they
// can be put back without a command; and what keeps a wrong reading from causing unlimited inserts (see inserts).
type Table struct {
	family  imds.Family
	forward forward

	backend Backend // of the last look
	// known are the wanted rules as nftables had them when iptables and the kernel agreed that they were right.
	known map[Rule]netfilter.NFTRule
	// distrusted: iptables showed one of our rules that was not recognised in the kernel's list. Until the two agree again, a
	// rule missing from that list is not taken to be missing.
	distrusted bool
	// harmless is the kernel's list from when iptables last showed that what is above our rules is harmless.
	harmless kernelChain
	listed   legacyListing // the last one
	inserts  inserts
	blocked  blocked
	// unchosen: the last look did not choose the backend again.
	unchosen bool
}

// NewTable makes the layer of one family. All families share the selector.
func NewTable(f imds.Family, s *Selector) *Table {
	return &Table{family: f, forward: newForward(f, s)}
}

// ID implements guard.Layer.
func (t *Table) ID() layer.ID { return layer.ID{Name: LayerName, Family: t.family} }

// seen is what a look found, for the reading and for the repair.
type seen struct {
	state  layer.State
	detail string
	err    error
	noPath bool

	backend Backend
	want    []Rule
	missing []Rule
	// copies has the number of copies of each wanted rule in iptables' listing; nil if there was none.
	copies map[Rule]int
	// kernel is set for nft.
	kernel kernelChain
	// own: the rules are in our own table, or have to go there.
	own bool
	// direct: iptables can't be used to move the rules, because it can't list the chain or mistakes other rules for ours.
	direct bool
	named  map[string]bool // see inserts.read
}

// Look implements guard.Layer.
func (t *Table) Look(p policy.Policy, doubt func(why string)) layer.Finding {
	want := Desired(t.family, p)
	var s seen
	// Rules that the kernel has lost are put back before the backend is chosen again, which takes longer than this reading and
	// the putting back together.
	kernel, err := t.readNFT(want)
	putBack := err == nil && !t.unchosen && t.follows(kernel) && t.canPutBack(kernel.missing())
	if t.unchosen = putBack; !putBack && t.choose() {
		kernel, err = t.readNFT(want)
	}
	switch {
	case len(want) == 0:
		s = t.unreadable(errors.New("the policy names no interface"))
	case t.backend == NFT:
		s = t.lookNFT(kernel, err, doubt)
	default:
		s = t.lookLegacy(want, doubt)
	}
	s.backend, s.want = t.backend, want
	again := time.Duration(0)
	if s.state != layer.Unknown && s.state != layer.Unsupported {
		var err error
		if again, err = t.inserts.read(len(s.missing) == 0, s.named, time.Now()); err != nil {
			s.state, s.detail, s.err = layer.Unknown, err.Error(), err
		}
	}
	return layer.Finding{Plan: s, Again: again, Reading: layer.Reading{
		State: s.state, Detail: s.detail, Err: s.err, NoPath: s.noPath, Rules: s.present(), Blocked: t.blocked.total, Place: string(t.backend),
	}}
}

// choose chooses the backend again, and reports whether it has changed. What is known of one backend says nothing about
// another.
func (t *Table) choose() (changed bool) {
	backend := t.forward.Backend()
	if backend == t.backend {
		return false
	}
	*t = Table{family: t.family, forward: t.forward, backend: backend, blocked: t.blocked}
	return true
}

// readNFT reads the kernel's list, which means nothing unless nft is the backend in use.
func (t *Table) readNFT(want []Rule) (kernelChain, error) {
	if t.backend != NFT {
		return kernelChain{}, nil
	}
	return readKernel(t.forward.Kernel, t.family.Endpoint().Addr(), want)
}

// canPutBack reports whether rules are missing and all of the missing ones are known in the kernel's format.
func (t *Table) canPutBack(missing []Rule) bool {
	unknown := func(r Rule) bool { _, known := t.known[r]; return !known }
	return len(missing) > 0 && !t.distrusted && !slices.ContainsFunc(missing, unknown)
}

// follows reports whether the kernel's list is trusted when it lacks a rule. After an insert that may not have been recognised,
// iptables is consulted first: if it shows what the list seems to lack, the list is not understood, and must not lead to
// another insert.
func (t *Table) follows(k kernelChain) bool {
	return !t.distrusted && !t.inserts.open() && k.useless() == ""
}

// present returns the wanted rules that were read back.
func (s seen) present() (texts []string) {
	for _, r := range s.want {
		if s.copies[r] > 0 || len(s.kernel.copies[r]) > 0 {
			texts = append(texts, r.String())
		}
	}
	return texts
}

func (t *Table) unreadable(err error) seen {
	if detail, yes := unsupported(t.family, err); yes {
		return seen{state: layer.Unsupported, detail: detail, noPath: true}
	}
	return seen{state: layer.Unknown, detail: err.Error(), err: err}
}

// lookTries is how often to ask the kernel and iptables again because the chain was changed in between.
const lookTries = 3

// lookNFT goes by the kernel's list first: iptables-nft omits or misprints rules that it did not write and, after rules were
// deleted, it waits for the kernel before it exits (see netfilter.NFT), which would delay putting them back. iptables' listing
// then says what the other rules are, and has to agree about ours.
func (t *Table) lookNFT(kernel kernelChain, err error, doubt func(string)) seen {
	var why error // why iptables' listing is not used
	for range lookTries {
		switch {
		case err != nil:
			return t.unreadable(err)
		case kernel.useless() != "":
			return t.lookOwn(kernel)
		case len(kernel.missing()) > 0 && t.follows(kernel):
			return t.byKernel(kernel, nil)
		}
		if state, detail := kernel.state(errors.New("iptables has not been asked yet")); !state.Protects() && !t.distrusted && !kernel.sameAs(t.harmless) {
			doubt(detail)
		}
		switch {
		case kernel.Length > maxListed:
			return t.byKernel(kernel, fmt.Errorf("%s has more than %d rules", chainName, maxListed))
		case kernel.Incomplete:
			return t.byKernel(kernel, errors.New("rules keep changing"))
		}
		var chain Chain
		before := kernel
		chain, why = list(t.family, func() ([]string, error) { return t.forward.List(NFT) })
		if kernel, err = t.readNFT(before.want); err != nil || why != nil {
			break
		}
		if before.sameAs(kernel) && len(chain.Lines) == kernel.Length && kernel.shows(chain, kernel.want) {
			return t.agreed(chain, kernel)
		}
		why = errors.New("rules keep changing")
	}
	switch {
	case err != nil:
		return t.unreadable(err)
	case kernel.useless() != "":
		return t.lookOwn(kernel)
	}
	s := t.byKernel(kernel, why)
	if _, command := errors.AsType[*CommandError](why); command {
		s.err = why
	}
	return s
}

// byKernel judges by the kernel's list alone.
func (t *Table) byKernel(k kernelChain, why error) seen {
	s := seen{kernel: k, missing: k.missing(), named: k.named(), direct: true}
	s.state, s.detail = k.state(why)
	t.blocked.add(place(NFT), k.want, k.counters())
	return s
}

// agreed judges by iptables' listing, given that the kernel's list stayed the same meanwhile.
func (t *Table) agreed(chain Chain, k kernelChain) seen {
	t.distrusted = false
	chain.mark(k)
	// A rule that iptables prints as something else is not ours, whatever it looks like in the kernel. If that is a mistake,
	// the limit on inserts ends it.
	for r, copies := range k.copies {
		shown := slices.DeleteFunc(copies, func(c netfilter.NFTRule) bool {
			l := chain.Lines[c.Position]
			return !l.Exact || l.Rule != r
		})
		if len(shown) == 0 {
			delete(t.known, r) // so that it is not put back without a command
		}
		k.copies[r] = shown
	}
	s := seen{kernel: k, copies: chain.Copies(k.want), direct: chain.lookalikes(k.want), named: k.named()}
	s.state, s.detail = Compare(k.want, chain)
	for _, r := range k.want {
		switch {
		case s.copies[r] == 0:
			s.missing = append(s.missing, r)
		case s.copies[r] > len(k.copies[r]):
			t.distrusted = true
		}
	}
	t.blocked.add(place(NFT), k.want, chain.counters(k.want))
	if s.state.Protects() {
		t.harmless = k
	}
	if s.state == layer.Enforced && !t.distrusted {
		t.known = make(map[Rule]netfilter.NFTRule, len(k.want))
		for _, r := range k.want {
			t.known[r] = k.copies[r][0]
		}
	}
	if t.distrusted {
		s.direct = false
		if s.detail == "" {
			s.detail = "by what iptables prints alone: the kernel's list of these rules is not understood"
		}
	}
	return s
}

// lookLegacy goes by iptables, which shows every rule that a legacy table can have.
func (t *Table) lookLegacy(want []Rule, doubt func(string)) seen {
	// Listing a table would load it, and a look must change nothing. A table that is not loaded has no rules.
	info, loaded, err := t.forward.Summary()
	if err == nil && !loaded {
		if detail, yes := unsupported(t.family, nil); yes {
			return seen{state: layer.Unsupported, detail: detail, noPath: true}
		}
		t.blocked.add(place(Legacy), want, nil)
		return seen{state: layer.Missing, detail: "the table is not loaded", missing: want}
	}
	extent := unmeasured
	if err == nil {
		extent = int(info.Forward())
	}
	if extent != t.listed.extent && extent != unmeasured && t.listed.extent > 0 {
		doubt("the kernel's summary of the table shows that the chain has changed")
	}
	chain, err := list(t.family, func() ([]string, error) { return t.forward.List(Legacy) })
	if err != nil {
		return t.unreadable(err)
	}
	s := seen{copies: chain.Copies(want), named: chain.named(want, t.family.Endpoint().Addr().String())}
	t.listed = t.listed.next(chain, extent, t.inserts.pending > 0)
	maps.Copy(s.named, numberedKeys("not listed", t.listed.hidden))
	s.state, s.detail = Compare(want, chain)
	s.missing = slices.DeleteFunc(slices.Clone(want), func(r Rule) bool { return s.copies[r] > 0 })
	t.blocked.add(place(Legacy), want, chain.counters(want))
	return s
}

// Repair implements guard.Layer. It puts the wanted rules at the top, once each: missing ones as the kernel had them or else
// with an insert, everything else in one transaction, so that an existing rule is in force at every moment. If a rule that it
// deletes is already gone, the transaction fails and does nothing; the next look will find out.
func (t *Table) Repair(_ policy.Policy, f layer.Finding) error {
	s, ok := f.Plan.(seen)
	switch {
	case !ok:
		return fmt.Errorf("repairing %s: the finding is another layer's", t.ID())
	case s.own:
		return t.repairOwn(s)
	case len(s.missing) > 0 && s.backend == NFT && t.putBack(s):
		return nil
	case len(s.missing) > 0:
		return t.insert(s)
	case s.direct && s.backend == NFT:
		return t.moveDirectly(s)
	}
	return t.move(s)
}

// putBack puts back what the kernel has lost, in the form the kernel had it, and reports whether that worked.
func (t *Table) putBack(s seen) bool {
	if !t.canPutBack(s.missing) {
		return false
	}
	var rules []netfilter.NFTRule
	for _, r := range s.missing {
		rules = append(rules, t.known[r])
	}
	t.inserts.made(len(rules), false)
	return t.forward.Replace(rules, nil) == nil
}

// insert inserts missing rules with commands.
func (t *Table) insert(s seen) error {
	t.inserts.made(len(s.missing), true)
	if s.copies != nil && !s.direct && len(s.want) > 1 {
		return t.move(s)
	}
	// -I also works in a chain that iptables can't list. The last rule inserted is the first in the chain.
	for _, r := range slices.Backward(s.missing) {
		if err := t.forward.Insert(s.backend, r); err != nil {
			return err
		}
	}
	return nil
}

// move uses iptables to move the rules.
func (t *Table) move(s seen) error {
	err := t.forward.Move(s.backend, s.copies, s.want)
	if err == nil {
		t.blocked.restart(place(s.backend))
	}
	return err
}

// moveDirectly moves the rules in the kernel, by their handles.
func (t *Table) moveDirectly(s seen) error {
	var top []netfilter.NFTRule
	for _, r := range s.want {
		top = append(top, s.kernel.copies[r][0])
	}
	err := replaceAll(t.forward.Replace, top, s.kernel.handles())
	if err == nil {
		t.blocked.restart(place(s.backend))
	}
	return err
}

// replaceAll is forward.Replace for any number of deletions. The rules for the top are there after the first transaction.
func replaceAll(replace func([]netfilter.NFTRule, []uint64) error, top []netfilter.NFTRule, remove []uint64) error {
	first := min(len(remove), netfilter.MaxDeleted)
	if err := replace(top, remove[:first]); err != nil {
		return err
	}
	for rest := range slices.Chunk(remove[first:], netfilter.MaxDeleted) {
		if err := replace(nil, rest); err != nil {
			return err
		}
	}
	return nil
}

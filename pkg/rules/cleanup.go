// Removing everything that imds-guard installs.

package rules

import (
	"errors"
	"fmt"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// Removed is what Cleanup removed from one backend's table of one family.
type Removed struct {
	Family  imds.Family
	Backend Backend
	Rules   []Rule
	Copies  int
}

// Cleanup removes every copy of every rule that imds-guard writes for these patterns, with either verdict, from both backends,
// and reads back that none is left. It loads no legacy table, and continues with the rest after an error.
func Cleanup(families []imds.Family, patterns []ifpattern.Pattern) (removed []Removed, err error) {
	var errs []error
	for _, f := range families {
		var ours []Rule
		for _, v := range policy.Verdicts {
			ours = append(ours, Desired(f, policy.New(patterns, v))...)
		}
		node := newForward(f, nil)
		for _, b := range []Backend{NFT, Legacy} {
			r := Removed{Family: f, Backend: b}
			var err error
			if len(ours) > 0 {
				err = r.clean(node, ours)
			}
			if b == NFT {
				err = errors.Join(err, r.cleanOwn(node, ours))
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("cleaning the %s rules of iptables-%s: %w", f, b, err))
			}
			if r.Copies > 0 {
				removed = append(removed, r)
			}
		}
		node.nft.Close()
	}
	return removed, errors.Join(errs...)
}

// clean retries as often as another process may plausibly write in between.
func (r *Removed) clean(node forward, ours []Rule) (err error) {
	var found, more bool
	for range 5 {
		if r.Backend == NFT {
			found, more, err = r.cleanNFT(node, ours)
		} else {
			found, err = r.cleanLegacy(node, ours)
		}
		if err == nil && !found && !more {
			return nil
		}
	}
	switch {
	case err != nil:
	case found:
		err = errors.New("rules keep coming back; is an agent still running on this node?")
	case more:
		err = errors.New("rules keep changing, so the chain can't be read to its end; try again")
	}
	return err
}

// cleanNFT deletes rules from the kernel's own list, by handle: so it works in a chain that iptables can't list, and can't hit
// a rule that only looks like ours. more says that the list was cut off, or that iptables shows further rules.
func (r *Removed) cleanNFT(node forward, ours []Rule) (found, more bool, err error) {
	k, err := readKernel(node.Kernel, r.Family.Endpoint().Addr(), ours)
	if err != nil || !k.Exists {
		return false, false, err
	}
	if handles := k.handles(); len(handles) > 0 {
		if err := replaceAll(node.Replace, nil, handles); err != nil {
			return true, false, err
		}
		r.removed(k.copyCounts())
		return true, k.Incomplete, nil
	}
	if k.Incomplete || k.Length > maxListed {
		return false, k.Incomplete, nil
	}
	// In case the kernel's list was not understood, iptables is asked too, if it can list the chain at all.
	chain, err := list(r.Family, func() ([]string, error) { return node.List(NFT) })
	if err != nil {
		return false, false, nil
	}
	if len(chain.Lines) != k.Length {
		return false, true, nil // the chain was changed in between
	}
	chain.mark(k)
	copies := chain.Copies(ours)
	if len(copies) == 0 || chain.lookalikes(ours) {
		return false, false, nil
	}
	if err := node.Move(NFT, copies, nil); err != nil {
		return true, false, err
	}
	r.removed(copies)
	return true, false, nil
}

func (r *Removed) cleanLegacy(node forward, ours []Rule) (found bool, err error) {
	_, loaded, err := node.Summary()
	if err != nil || !loaded {
		return false, err
	}
	chain, err := list(r.Family, func() ([]string, error) { return node.List(Legacy) })
	if err != nil {
		return false, err
	}
	copies := chain.Copies(ours)
	if len(copies) == 0 {
		return false, nil
	}
	if err := node.Move(Legacy, copies, nil); err != nil {
		return true, err
	}
	r.removed(copies)
	return true, nil
}

// removed records what was deleted.
func (r *Removed) removed(copies map[Rule]int) {
	for rule, n := range copies {
		r.Rules = append(r.Rules, rule)
		r.Copies += n
	}
}

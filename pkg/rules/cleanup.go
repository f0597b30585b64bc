// The removal of everything that imds-guard installs.
package rules

import (
	"errors"
	"fmt"
	"slices"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// Removed is what Cleanup removed from one backend's table of one family.
type Removed struct {
	Family  enforce.Family
	Backend Backend
	Rules   []Rule
	Copies  int
}

// Cleanup removes every copy of every rule that imds-guard writes for these patterns, under either verdict, from both
// backends, and reads back that none is left. It loads no legacy table, and goes on with the rest after an error.
func Cleanup(families []enforce.Family, patterns []ifpattern.Pattern) (removed []Removed, err error) {
	var errs []error
	var nft netfilter.NFT
	defer nft.Close()
	for _, b := range []Backend{NFT, Legacy} {
		for _, f := range families {
			there, err := inUse(&nft, b, f)
			if err == nil && there {
				var ours []Rule
				for _, v := range Verdicts {
					ours = append(ours, Desired(f, patterns, v)...)
				}
				var r Removed
				r, err = cleanTable(&nft, b, f, ours)
				if r.Copies > 0 {
					removed = append(removed, r)
				}
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("cleaning the %s rules of iptables-%s: %w", f, b, err))
			}
		}
	}
	return removed, errors.Join(errs...)
}

// inUse reports whether a backend has FORWARD, so that there may be something to remove.
func inUse(nft *netfilter.NFT, b Backend, f enforce.Family) (bool, error) {
	if b == NFT {
		return nft.HasChain(f, tableName, chainName)
	}
	tables, err := netfilter.LegacyTables(f)
	return slices.Contains(tables, tableName), err
}

// cleanTable tries as often as somebody else may plausibly write in between.
func cleanTable(nft *netfilter.NFT, b Backend, f enforce.Family, ours []Rule) (removed Removed, err error) {
	removed = Removed{Family: f, Backend: b}
	c, err := newCommand(b, f)
	if err != nil {
		return removed, err
	}
	for range 5 {
		var chain Chain
		if chain, err = list(c); err != nil {
			return removed, err
		}
		if b == NFT {
			var there []netfilter.NFTRule
			if there, err = nft.ReadRules(f, tableName, chainName); err == nil {
				err = markOdd(f, ours, &chain, there)
			}
			if err != nil {
				continue // perhaps somebody has written in between
			}
		}
		copies := chain.Copies(ours)
		if len(copies) == 0 {
			return removed, nil
		}
		if err = c.replace(copies, nil); err != nil {
			continue
		}
		for r, n := range copies {
			removed.Rules = append(removed.Rules, r)
			removed.Copies += n
		}
	}
	if err == nil {
		err = errors.New("rules keep coming back; is an agent still running on this node?")
	}
	return removed, err
}

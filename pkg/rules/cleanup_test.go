package rules

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

const cleanTries = 5

// Every copy of every rule goes, of either verdict, and nothing else.
func TestClean(t *testing.T) {
	dropped, rejected := wanted(t, policy.Drop, "eni+"), wanted(t, policy.Reject, "eni+")
	all := slices.Concat(dropped, rejected)
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errBroken}
	const others = "-j ACCEPT; -d 169.254.169.254/32 -i eni0 -j DROP"
	back := func(f *flawed, times int) { // somebody puts one in again after each write
		var again func()
		again = func() {
			f.chain = append(f.chain, f.written(dropped[0]))
			if times--; times > 0 {
				f.meddle = again
			}
		}
		f.meddle = again
	}
	longer := func(f *flawed, length int) {
		for len(f.chain) < length {
			f.below("-s 10.0.0.1/32", accept)
		}
	}
	cut := func(f *flawed, upTo int) {
		f.reading = func(read int, c *netfilter.NFTChain) error { c.Incomplete = read <= upTo; return nil }
	}
	failing := func(f *flawed, upTo int) {
		f.reading = func(read int, c *netfilter.NFTChain) error {
			if read <= upTo {
				return errBroken
			}
			return nil
		}
	}
	rules := func(f *flawed) {
		f.chain = append(f.chain, f.written(rejected[1]), f.written(dropped[0]))
		f.below("-j ACCEPT", accept)
		f.chain = append(f.chain, f.written(dropped[0]), f.written(rejected[0]))
		f.below("-d 169.254.169.254/32 -i eni0 -j DROP", odd)
	}
	for _, c := range []struct {
		name    string
		backend Backend
		prepare func(*flawed)
		left    string // separated by semicolons
		copies  int
		lists   int // -1 for any number
		err     string
	}{
		{"nothing there", NFT, func(*flawed) {}, "", 0, 1, ""},
		{"others' rules", NFT, func(f *flawed) { rules(f); f.chain = []fakeRule{f.chain[2], f.chain[5]} }, others, 0, 1, ""},
		{"all", NFT, rules, others, 4, 1, ""},
		{"in a chain that iptables can't list", NFT, func(f *flawed) { rules(f); f.listErr = incompatible }, others, 4, 1, ""},
		{"not understood in the kernel", NFT, func(f *flawed) { rules(f); f.blind = true }, others, 4, 2, ""},
		{"one that only looks like ours", NFT, func(f *flawed) { f.below(ours, odd) }, ours, 0, 1, ""},
		{"one that jumps to a chain called DROP", NFT, func(f *flawed) { f.below(ours, jump) }, ours, 0, 1, ""},
		{"not understood, beside one that looks like it", NFT, func(f *flawed) {
			f.chain = append(f.chain, f.written(dropped[0]))
			f.below(ours, odd)
			f.blind = true
		}, ours + "; " + ours, 0, 1, ""},
		{"no chain", NFT, func(f *flawed) {
			f.reading = func(_ int, c *netfilter.NFTChain) error { *c = netfilter.NFTChain{}; return nil }
		}, "", 0, 0, ""},
		{"the longest chain that is listed", NFT, func(f *flawed) { longer(f, maxListed) }, "-", 0, 1, ""},
		{"a longer one", NFT, func(f *flawed) { longer(f, maxListed+1) }, "-", 0, 0, ""},
		{"thousands", NFT, func(f *flawed) {
			for range 2*netfilter.MaxDeleted + 1 {
				f.chain = append(f.chain, f.written(dropped[0]))
			}
		}, "", 2*netfilter.MaxDeleted + 1, 1, ""},
		{"back four times", NFT, func(f *flawed) { rules(f); back(f, cleanTries-2) }, others, 4 + cleanTries - 2, 1, ""},
		{"back every time", NFT, func(f *flawed) { rules(f); back(f, 100) }, others + "; " + ours, 4 + cleanTries - 1, 0, "keep coming back"},
		{"the list is cut off at first", NFT, func(f *flawed) { cut(f, cleanTries-1) }, "", 0, 1, ""},
		{"the list is cut off always", NFT, func(f *flawed) { cut(f, 100) }, "", 0, 0, "can't be read to its end"},
		{"rules in a list that is cut off", NFT, func(f *flawed) { rules(f); cut(f, 100) }, others, 4, 0, "can't be read to its end"},
		{"the kernel can't be read at first", NFT, func(f *flawed) { rules(f); failing(f, cleanTries-2) }, others, 4, 1, ""},
		{"the kernel can't be read", NFT, func(f *flawed) { failing(f, 100) }, "", 0, 0, "broken"},
		{"they can't be deleted", NFT, func(f *flawed) { rules(f); f.writeErr = unix.EPERM }, "-", 0, 0, "operation not permitted"},
		{"not understood, and they can't be deleted", NFT, func(f *flawed) { rules(f); f.blind, f.writeErr = true, errBroken }, "-", 0, cleanTries, "broken"},
		{"iptables lists another moment", NFT, func(f *flawed) {
			f.lie = func(lines []string) []string { return append(lines, "-A FORWARD -c 0 0 -j ACCEPT") }
		}, "", 0, cleanTries, "can't be read to its end"},

		{"nothing there", Legacy, func(*flawed) {}, "", 0, 1, ""},
		{"others' rules", Legacy, func(f *flawed) { rules(f); f.chain = []fakeRule{f.chain[2], f.chain[5]} }, others, 0, 1, ""},
		{"all", Legacy, rules, others, 4, 2, ""},
		{"the table is not loaded", Legacy, func(f *flawed) { f.unloaded = true }, "", 0, 0, ""},
		{"it is not known whether it is loaded", Legacy, func(f *flawed) { f.summaryErr = errBroken }, "", 0, 0, "broken"},
		{"it can't be listed", Legacy, func(f *flawed) { rules(f); f.listErr = incompatible }, "-", 0, cleanTries, "broken"},
		{"they can't be deleted", Legacy, func(f *flawed) { rules(f); f.writeErr = errBroken }, "-", 0, cleanTries, "broken"},
		{"back at first", Legacy, func(f *flawed) { rules(f); back(f, cleanTries-2) }, others, 4 + cleanTries - 2, cleanTries, ""},
		{"back every time", Legacy, func(f *flawed) { rules(f); back(f, 100) }, others + "; " + ours, 4 + cleanTries - 1, cleanTries, "keep coming back"},
	} {
		f := &flawed{fakeForward: newFake(c.backend)}
		c.prepare(f)
		r := Removed{Family: imds.IPv4, Backend: c.backend}
		err := r.clean(f, all)
		if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s, %s: %v", c.backend, c.name, err)
		}
		var left []string
		for _, text := range f.texts() {
			left = append(left, strings.TrimPrefix(text, "-A FORWARD "))
		}
		if got := strings.Join(left, "; "); c.left != "-" && got != c.left {
			t.Errorf("%s, %s: left %q, want %q", c.backend, c.name, got, c.left)
		}
		if r.Copies != c.copies || f.lists != c.lists {
			t.Errorf("%s, %s: %d copies removed, %d listings", c.backend, c.name, r.Copies, f.lists)
		}
		if c.name == "all" {
			for _, rule := range all {
				if !slices.Contains(r.Rules, rule) {
					t.Errorf("%s: %q is not told among %q", c.backend, rule, r.Rules)
				}
			}
			if len(r.Rules) != len(all) {
				t.Errorf("%s: told %q", c.backend, r.Rules)
			}
		}
	}
}

// A rule was deleted just before: the rest is removed at the next try.
func TestCleanAfterAFailedTry(t *testing.T) {
	f := &flawed{fakeForward: newFake(NFT)}
	drop := wanted(t, policy.Drop, "eni+")
	f.chain = append(f.chain, f.written(drop[0]), f.written(drop[0]))
	f.reading = func(read int, _ *netfilter.NFTChain) error {
		if read == 1 {
			f.chain = f.chain[1:]
		}
		return nil
	}
	r := Removed{Family: imds.IPv4, Backend: NFT}
	if err := r.clean(f, drop); err != nil || len(f.chain) != 0 || r.Copies != 1 {
		t.Errorf("%v, left %q, %d removed", err, f.texts(), r.Copies)
	}
}

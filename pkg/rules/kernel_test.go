package rules

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

var endpoint = imds.IPv4.Endpoint().Addr()

// kernelOf is the kernel's list of a chain, read for these rules. A number in the chain is the wanted rule of that index; the
// other words are somebody else's rules, and may be repeated ("drop*512").
func kernelOf(t *testing.T, want []Rule, chain string) (*fakeForward, kernelChain) {
	t.Helper()
	f := newFake(NFT)
	for word := range strings.FieldsSeq(chain) {
		word, times, repeated := strings.Cut(word, "*")
		n := 1
		if repeated {
			if _, err := fmt.Sscan(times, &n); err != nil {
				t.Fatal(err)
			}
		}
		for range n {
			switch word {
			case "accept":
				f.below("-j ACCEPT", accept)
			case "drop":
				f.below("-j DROP", drops)
			case "odd":
				f.below("-j DROP", odd)
			case "jump":
				f.below("-j DROP", jump)
			default:
				var i int
				if _, err := fmt.Sscan(word, &i); err != nil {
					t.Fatal(err)
				}
				f.chain = append(f.chain, f.written(want[i]))
			}
		}
	}
	k, err := readKernel(f.Kernel, endpoint, want)
	if err != nil {
		t.Fatal(err)
	}
	return f, k
}

// A rule that differs from a wanted one in any part is another.
func TestIsRule(t *testing.T) {
	f := newFake(NFT)
	for _, r := range wanted(t, policy.Reject, "eni+") {
		same := f.written(r).kernel
		if !isRule(same, r) {
			t.Errorf("%q is not recognised in %+v", r, same)
		}
		for part, change := range map[string]func(*netfilter.NFTRule){
			"plain":   func(k *netfilter.NFTRule) { k.Plain = false },
			"in":      func(k *netfilter.NFTRule) { k.In = "eni0" },
			"dest":    func(k *netfilter.NFTRule) { k.Dest = netip.MustParseAddr("169.254.169.253") },
			"tcp":     func(k *netfilter.NFTRule) { k.TCP = !k.TCP },
			"target":  func(k *netfilter.NFTRule) { k.Target = "DROP" },
			"answer":  func(k *netfilter.NFTRule) { k.RejectWith = "icmp-host-prohibited" },
			"nothing": func(k *netfilter.NFTRule) { k.RejectWith = "" },
		} {
			other := same
			if change(&other); isRule(other, r) {
				t.Errorf("with another %s, %+v is taken for %q", part, other, r)
			}
		}
	}
	r := wanted(t, policy.Drop, "eni+")[0]
	k := f.written(r).kernel
	if k.RejectWith = "meaningless"; !isRule(k, r) {
		t.Error("a drop is asked how it rejects")
	}
}

// Only as much of the chain is read as is needed to judge every wanted rule, in whatever order they are.
func TestReadKernelAsksForEnough(t *testing.T) {
	want := wanted(t, policy.Reject, "eni+", "vlan+")
	var scope netfilter.Scope
	broken := errors.New("broken")
	_, err := readKernel(func(s netfilter.Scope) (netfilter.NFTChain, error) {
		scope = s
		return netfilter.NFTChain{Exists: true}, broken
	}, endpoint, want)
	if !errors.Is(err, broken) {
		t.Errorf("the error is %v", err)
	}
	if scope.Address != endpoint || scope.Top != maxListed {
		t.Errorf("%d rules are read, and those that name %s", scope.Top, scope.Address)
	}
	f := newFake(NFT)
	for i, step := range []struct {
		rule   netfilter.NFTRule
		enough bool
	}{
		{accept, false},
		{f.written(want[2]).kernel, false},
		{f.written(want[0]).kernel, false},
		{f.written(want[2]).kernel, false},
		{f.written(want[3]).kernel, false},
		{drops, false},
		{f.written(want[1]).kernel, true},
	} {
		if got := scope.Enough(step.rule); got != step.enough {
			t.Errorf("after rule %d: enough %t", i+1, got)
		}
	}
}

// What the kernel's list says by itself. Of rules above ours it only recognises those that can do nothing but stop packets.
func TestKernelState(t *testing.T) {
	one, reject := wanted(t, policy.Drop, "eni+"), wanted(t, policy.Reject, "eni+")
	two, four := wanted(t, policy.Drop, "eni+", "vlan+"), wanted(t, policy.Reject, "eni+", "vlan+")
	for _, c := range []struct {
		want   []Rule
		chain  string
		state  layer.State
		detail string // a part of it
	}{
		{one, "", layer.Missing, "-i eni+ -j DROP\" is not in the chain"},
		{one, "accept odd jump drop", layer.Missing, "is not in the chain"},
		{one, "0", layer.Enforced, "by the kernel's own list alone: a reason"},
		{one, "0 accept odd jump", layer.Enforced, "by the kernel's own list alone: a reason"},
		{one, "accept 0", Shadowed, "rule 1, handle 1, stands above \"-A FORWARD"},
		{one, "drop drop odd 0", Shadowed, "rule 3, handle 3, stands above"},
		{one, "jump 0", Shadowed, "iptables did not list what it does: a reason"},
		{one, "drop 0", Displaced, "-i eni+ -j DROP\" is not in its place at the top"},
		{one, "0 0", Duplicate, "-i eni+ -j DROP\" is in the chain 2 times"},
		{one, "0 accept 0 0", Duplicate, "3 times"},
		{one, "drop 0 accept 0", Duplicate, "2 times"},
		{one, "accept 0 0", Shadowed, "rule 1,"},

		// At the end of what is looked at.
		{one, "drop*511 0", Displaced, "in its place"},
		{one, "drop*512 0", Displaced, "in its place"},
		{one, "drop*513 0", Shadowed, "more than 512 rules stand above \"-A FORWARD"},
		{one, "drop*510 accept 0", Shadowed, "rule 511, handle 511,"},
		{one, "drop*511 accept 0", Shadowed, "rule 512, handle 512,"},
		{one, "drop*512 accept 0", Shadowed, "more than 512 rules stand above"},
		{one, "0 drop*600 0", Duplicate, "2 times"},
		{two, "0 drop*512 1", Shadowed, "more than 512 rules stand above \"-A FORWARD -d 169.254.169.254/32 -i vlan+"},
		{two, "0 drop*511 1", Displaced, "in its place"},

		{two, "0 1", layer.Enforced, "by the kernel's own list alone"},
		{two, "1 0", Displaced, "-i eni+ -j DROP\" is not in its place at the top"},
		{two, "0 drop 1", Displaced, "in its place"},
		{two, "0 accept 1", Shadowed, "rule 2, handle 2, stands above \"-A FORWARD -d 169.254.169.254/32 -i vlan+"},
		{two, "0 0 1", Duplicate, "-i eni+ -j DROP\" is in the chain 2 times"},
		{two, "0 1 1", Duplicate, "-i vlan+ -j DROP\" is in the chain 2 times"},
		{two, "1", layer.Missing, "-i eni+ -j DROP\" is not"},
		{two, "0 0", layer.Missing, "-i vlan+ -j DROP\" is not"},

		{reject, "0 1", layer.Enforced, "by the kernel's own list alone"},
		{reject, "1 0", Displaced, "-p tcp -j REJECT --reject-with tcp-reset\" is not in its place"},
		{reject, "0", layer.Missing, "icmp-port-unreachable\" is not in the chain"},
		{four, "0 1 2 3", layer.Enforced, "by the kernel's own list alone"},
		{four, "0 1 3 2", Displaced, "in its place"},
		{four, "0 1 3", layer.Missing, "-i vlan+ -p tcp"},
		{four, "0 2 3", layer.Missing, "-i eni+ -j REJECT"},
		{four, "0 1 accept 2 3", Shadowed, "rule 3, handle 3, stands above \"-A FORWARD -d 169.254.169.254/32 -i vlan+ -p tcp"},
		{four, "0 1 2 accept 3", Shadowed, "rule 4, handle 4, stands above \"-A FORWARD -d 169.254.169.254/32 -i vlan+ -j"},
		{four, "0 1 2 3 accept 2", Duplicate, "-i vlan+ -p tcp -j REJECT --reject-with tcp-reset\" is in the chain 2 times"},
	} {
		_, k := kernelOf(t, c.want, c.chain)
		if state, detail := k.state(errors.New("a reason")); state != c.state || !strings.Contains(detail, c.detail) {
			t.Errorf("%d wanted, %q: %s (%s), want %s (%s)", len(c.want), c.chain, state, detail, c.state, c.detail)
		}
	}
}

func TestCopiesInTheKernel(t *testing.T) {
	want := wanted(t, policy.Reject, "eni+", "vlan+")
	f, _ := kernelOf(t, want, "accept 1 0 drop 1 drop*600 3 1")
	for i := range f.chain {
		f.chain[i].kernel.Packets = 1 << i % 64
	}
	f.chain[605].kernel.Packets, f.chain[606].kernel.Packets = 100, 1000
	k, err := readKernel(f.Kernel, endpoint, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := k.copyCounts(), (map[Rule]int{want[0]: 1, want[1]: 3, want[3]: 1}); !maps.Equal(got, want) {
		t.Errorf("copies %v", got)
	}
	if got, want := k.counters(), (map[Rule]counted{want[0]: {4, 1}, want[1]: {2 + 16 + 1000, 3}, want[3]: {100, 1}}); !maps.Equal(got, want) {
		t.Errorf("counters %v", got)
	}
	if missing := k.missing(); len(missing) != 1 || missing[0] != want[2] {
		t.Errorf("missing %q", missing)
	}
}

// A rule that names the endpoint and may be one of ours in disguise is known by its handle.
func TestNamedInTheKernel(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+", "vlan+")
	f, _ := kernelOf(t, want, "0 accept drop odd jump 0 1")
	for range 2 {
		f.below("-d 169.254.169.254/32 -j ACCEPT", accept)
		f.below("-d 169.254.169.254/32 -j DROP", drops)
		f.below("-d 169.254.169.254/32", odd)
		f.below("-d 169.254.169.254/32 -j DROP", jump)
		f.below("-j ACCEPT", accept)
	}
	k, err := readKernel(f.Kernel, endpoint, want)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := k.named(), (map[string]bool{"9": true, "10": true, "14": true, "15": true}); !maps.Equal(got, want) {
		t.Errorf("named %v, want %v", got, want)
	}
}

// Two readings are the same if nothing that matters has moved in between.
func TestSameAs(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	for _, c := range []struct {
		name   string
		change func(*fakeForward)
		same   bool
	}{
		{"nothing", func(*fakeForward) {}, true},
		{"counters", func(f *fakeForward) { f.chain[1].kernel.Packets = 7 }, true},
		{"one more at the end", func(f *fakeForward) { f.below("-j ACCEPT", accept) }, false},
		{"one less at the end", func(f *fakeForward) { f.chain = f.chain[:len(f.chain)-1] }, false},
		{"another rule above", func(f *fakeForward) { f.chain[0] = f.other("-j ACCEPT", accept) }, false},
		{"moved up", func(f *fakeForward) { f.chain[0], f.chain[1] = f.chain[1], f.chain[0] }, false},
		{"put in anew", func(f *fakeForward) { f.chain[1] = f.written(want[0]) }, false},
		{"one that names the endpoint moved", func(f *fakeForward) { f.chain[3], f.chain[4] = f.chain[4], f.chain[3] }, false},
		{"one that does not name it is another", func(f *fakeForward) { f.chain[4] = f.other("-j ACCEPT", accept) }, true},
	} {
		f, _ := kernelOf(t, want, "accept 0 accept")
		f.below("-d 169.254.169.254/32 -j ACCEPT", accept)
		f.below("-j ACCEPT", accept)
		before, _ := readKernel(f.Kernel, endpoint, want)
		c.change(f)
		if after, _ := readKernel(f.Kernel, endpoint, want); before.sameAs(after) != c.same || after.sameAs(before) != c.same {
			t.Errorf("%s: the same %t", c.name, before.sameAs(after))
		}
	}
}

// What was harmless above other wanted rules may not be harmless above these.
func TestSameAsForOtherRules(t *testing.T) {
	f, before := kernelOf(t, wanted(t, policy.Drop, "eni+"), "accept")
	if after, _ := readKernel(f.Kernel, endpoint, wanted(t, policy.Drop, "vlan+")); before.sameAs(after) {
		t.Error("a reading for other wanted rules is taken for the same")
	}
}

// Why a chain does nothing, with the command that mends it.
func TestUselessWords(t *testing.T) {
	good := netfilter.NFTChain{Exists: true, Type: "filter", Hook: unix.NF_INET_FORWARD}
	for _, c := range []struct {
		name   string
		family imds.Family
		change func(*netfilter.NFTChain)
		words  []string
	}{
		{"good", imds.IPv4, func(*netfilter.NFTChain) {}, nil},
		{"not there", imds.IPv4, func(c *netfilter.NFTChain) { *c = netfilter.NFTChain{} }, nil},
		{"dormant", imds.IPv4, func(c *netfilter.NFTChain) { c.Dormant = true }, []string{"is dormant", "`nft add table ip filter` wakes it"}},
		{"dormant, IPv6", imds.IPv6, func(c *netfilter.NFTChain) { c.Dormant = true }, []string{"`nft add table ip6 filter`"}},
		{"dormant and without a hook", imds.IPv4, func(c *netfilter.NFTChain) { c.Dormant, c.Type = true, "" }, []string{"is dormant"}},
		{"no hook", imds.IPv4, func(c *netfilter.NFTChain) { c.Type = "" }, []string{"has no hook", "`nft delete chain ip filter FORWARD`"}},
		{"no hook, IPv6", imds.IPv6, func(c *netfilter.NFTChain) { c.Type = "" }, []string{"`nft delete chain ip6 filter FORWARD`"}},
		{"another type", imds.IPv4, func(c *netfilter.NFTChain) { c.Type = "route" }, []string{"of type route at hook forward", "`nft delete chain"}},
		{"prerouting", imds.IPv4, func(c *netfilter.NFTChain) { c.Hook = 0 }, []string{"at hook prerouting"}},
		{"input", imds.IPv4, func(c *netfilter.NFTChain) { c.Hook = 1 }, []string{"at hook input"}},
		{"output", imds.IPv4, func(c *netfilter.NFTChain) { c.Hook = 3 }, []string{"at hook output"}},
		{"postrouting", imds.IPv4, func(c *netfilter.NFTChain) { c.Hook = 4 }, []string{"at hook postrouting"}},
		{"ingress", imds.IPv4, func(c *netfilter.NFTChain) { c.Hook = 5 }, []string{"at hook ingress"}},
		{"a hook to come", imds.IPv4, func(c *netfilter.NFTChain) { c.Hook = 6 }, []string{"at hook 6"}},
	} {
		k := kernelChain{NFTChain: good, want: Desired(c.family, policyOf(t, policy.Drop, "eni+"))}
		c.change(&k.NFTChain)
		words := k.useless()
		if (words == "") != (c.words == nil) {
			t.Errorf("%s: %q", c.name, words)
		}
		for _, part := range c.words {
			if !strings.Contains(words, part) {
				t.Errorf("%s: %q, want %q in it", c.name, words, part)
			}
		}
	}
	k := kernelChain{NFTChain: netfilter.NFTChain{Exists: true}} // a policy without a pattern
	if words := k.useless(); !strings.Contains(words, "nft delete chain ip filter") {
		t.Errorf("with nothing wanted: %q", words)
	}
}

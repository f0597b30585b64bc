package rules

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// What a repair is done with: commands for single inserts, a command's transaction, or the kernel itself.
func TestHowItIsRepaired(t *testing.T) {
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errBroken}
	type how struct{ inserts, moves, replaces int }
	drop, reject := policyOf(t, policy.Drop, "eni+"), policyOf(t, policy.Reject, "eni+")
	gone := func(k *kept) { k.chain = slices.Delete(k.chain, 1, 2) }
	for _, c := range []struct {
		name    string
		backend Backend
		policy  policy.Policy
		tamper  func(*kept)
		state   layer.State
		want    how
	}{
		{"one known rule is gone", NFT, drop, func(k *kept) { k.flush() }, layer.Missing, how{0, 0, 1}},
		{"one of two known rules is gone", NFT, reject, gone, layer.Missing, how{0, 0, 1}},
		{"one rule is gone that is not known", NFT, drop, func(k *kept) { k.flush(); k.known = nil }, layer.Missing, how{1, 0, 0}},
		{"one of two that are not known", NFT, reject, func(k *kept) { gone(k); k.known = nil }, layer.Missing, how{1, 0, 0}},
		{"two that are not known", NFT, reject, func(k *kept) { k.flush(); k.known = nil }, layer.Missing, how{2, 0, 0}},
		{"one of two that the kernel's list does not show", NFT, reject, func(k *kept) { gone(k); k.blind, k.distrusted = true, true }, layer.Missing, how{0, 1, 0}},
		{"the same beside one that looks like ours", NFT, reject, func(k *kept) {
			gone(k)
			k.below(strings.TrimPrefix(Desired(imds.IPv4, reject)[0].String(), "-A FORWARD "), odd)
			k.known, k.distrusted = nil, true
		}, layer.Missing, how{1, 0, 0}},
		{"accept above", NFT, drop, func(k *kept) { k.above("-j ACCEPT", accept) }, Shadowed, how{0, 1, 0}},
		{"one that looks like ours above", NFT, drop, func(k *kept) { k.above(ours, odd) }, Shadowed, how{0, 0, 1}},
		{"one that looks like ours below, and an accept above", NFT, drop, func(k *kept) {
			k.below(ours, jump)
			k.above("-j ACCEPT", accept)
		}, Shadowed, how{0, 0, 1}},
		{"accept above, and iptables can't list", NFT, drop, func(k *kept) { k.above("-j ACCEPT", accept); k.listErr = incompatible }, Shadowed, how{0, 0, 1}},
		{"accept above, and only iptables shows ours", NFT, drop, func(k *kept) {
			k.blind, k.distrusted = true, true
			k.above("-j ACCEPT", accept)
		}, Shadowed, how{0, 1, 0}},
		{"only iptables shows ours, and one that looks like it", NFT, drop, func(k *kept) {
			k.blind, k.distrusted = true, true
			k.below(ours, odd)
			k.above("-j ACCEPT", accept)
		}, Shadowed, how{0, 1, 0}},
		{"one rule is gone", Legacy, drop, func(k *kept) { k.flush() }, layer.Missing, how{1, 0, 0}},
		{"one of two rules is gone", Legacy, reject, gone, layer.Missing, how{0, 1, 0}},
		{"both are gone", Legacy, reject, func(k *kept) { k.flush() }, layer.Missing, how{0, 1, 0}},
		{"accept above", Legacy, drop, func(k *kept) { k.above("-j ACCEPT", accept) }, Shadowed, how{0, 1, 0}},
	} {
		k, _ := keepFlawed(t, c.backend, c.policy)
		c.tamper(k)
		before := how{k.fakeForward.inserts, k.moves, k.replaces}
		f := k.look()
		if f.State != c.state {
			t.Errorf("%s, %s: %s (%s)", c.backend, c.name, f.State, f.Detail)
		}
		if err := k.Table.Repair(k.policy, f); err != nil {
			t.Errorf("%s, %s: %v", c.backend, c.name, err)
		}
		if got := (how{k.fakeForward.inserts - before.inserts, k.moves - before.moves, k.replaces - before.replaces}); got != c.want {
			t.Errorf("%s, %s: %+v, want %+v", c.backend, c.name, got, c.want)
		}
		if top := k.chain[0].kernel; !top.Plain {
			t.Errorf("%s, %s: at the top is %+v", c.backend, c.name, top)
		}
	}
}

// A legacy table that nobody has loaded is not listed, since that would load it. Its rules and their counters begin anew.
func TestTableThatIsNotLoaded(t *testing.T) {
	k, f := keepFlawed(t, Legacy, policyOf(t, policy.Reject, "eni+"))
	f.lie = k.counted
	k.chain[0].kernel.Packets = 100
	k.look()
	k.flush()
	f.unloaded = true
	lists := k.lists
	finding := k.must(layer.Missing, "not loaded")
	if k.lists != lists || finding.Blocked != 100 || finding.Rules != nil {
		t.Errorf("%d listings, %+v", k.lists-lists, finding)
	}
	f.unloaded = false
	if err := k.Table.Repair(k.policy, finding); err != nil || k.fakeForward.inserts != 2 {
		t.Errorf("%v, %d inserts", err, k.fakeForward.inserts)
	}
	k.chain[0].kernel.Packets = 150
	if finding := k.must(layer.Enforced, "put in"); finding.Blocked != 250 {
		t.Errorf("%d packets", finding.Blocked)
	}
}

// A change of the backend makes all that was known of the other one void.
func TestNothingIsKnownOfAnotherBackend(t *testing.T) {
	k := keep(t, NFT)
	k.known = map[Rule]netfilter.NFTRule{}
	k.blocked.last = map[place]map[Rule]counted{place(NFT): {wanted(t, policy.Drop, "eni+")[0]: {1000, 1}}}
	k.lie, k.blind = func(lines []string) []string { return lines[:1] }, true
	for range 10 {
		k.repair()
	}
	k.must(layer.Unknown, "with inserts that are not recognised")
	k.lie, k.blind, k.distrusted = nil, false, true
	k.fakeForward.backend = Legacy
	k.flush()
	if f := k.must(layer.Missing, "in the other backend"); f.Again != 0 {
		t.Errorf("a look after %s is wished", f.Again)
	}
	k.repair()
	k.must(layer.Enforced, "in the other backend")
	if k.distrusted || k.inserts0() || k.known != nil || k.harmless.NFTChain.Exists {
		t.Errorf("left over: %+v", k.Table)
	}
	k.blocked.last = map[place]map[Rule]counted{place(Legacy): {wanted(t, policy.Drop, "eni+")[0]: {1000, 1}}}
	k.fakeForward.backend = NFT
	k.lie = func(lines []string) []string {
		return []string{lines[0], strings.Replace(lines[1], "-c 0 0", "-c 1500 0", 1)}
	}
	if f := k.must(layer.Enforced, "back"); f.Blocked != 1500 {
		t.Errorf("%d packets", f.Blocked)
	}
}

// inserts0 reports whether an insert is open.
func (k *kept) inserts0() bool { return k.Table.inserts.open() }

// On a new node iptables is not asked before the rules are in.
func TestFirstLookOfAnEmptyChain(t *testing.T) {
	k := keep(t, NFT)
	if k.must(layer.Missing, "at first"); k.lists != 0 {
		t.Errorf("%d listings", k.lists)
	}
	for name, k := range map[string]*kept{"nft": keep(t, NFT), "legacy": keep(t, Legacy)} {
		k.chain = append(k.chain, k.written(wanted(t, policy.Drop, "eni+")[0]))
		if k.must(layer.Enforced, "as an earlier agent has left it"); len(k.doubts) != 0 {
			t.Errorf("%s: doubts %q, with nothing read before", name, k.doubts)
		}
	}
}

// Unrecognised inserts are not forgotten because a reading fails now and then.
func TestUnknownInBetweenBoundsNothing(t *testing.T) {
	k := keep(t, NFT)
	f := &flawed{fakeForward: k.fakeForward}
	k.Table.forward = f
	k.lie, k.blind = func(lines []string) []string { return lines[:1] }, true
	for i := range 100 {
		f.reading = func(int, *netfilter.NFTChain) error {
			if i%2 == 1 {
				return errBroken
			}
			return nil
		}
		k.repair()
	}
	if n := k.fakeForward.inserts; n != maxUnrecognised {
		t.Errorf("%d inserts", n)
	}
}

// What is known not to be understood does not cause a doubt at each look, and a detail about what is wrong outweighs it.
func TestDistrustIsQuiet(t *testing.T) {
	k := keep(t, NFT)
	k.blind = true
	k.repair()
	k.must(layer.Enforced, "by what iptables prints")
	if k.must(layer.Enforced, "looked again"); len(k.doubts) != 0 {
		t.Errorf("doubts %q", k.doubts)
	}
	k.above("-j ACCEPT", accept)
	if f := k.must(Shadowed, "accept above"); !strings.Contains(f.Detail, "stands above") || len(k.doubts) != 0 {
		t.Errorf("the detail is %q, doubts %q", f.Detail, k.doubts)
	}
}

// A summary that is not available says nothing about the chain, neither now nor at the next look.
func TestNoSummaryMakesNoDoubt(t *testing.T) {
	k, f := keepFlawed(t, Legacy, policyOf(t, policy.Drop, "eni+"))
	for _, err := range []error{errBroken, errBroken, nil, nil} {
		f.summaryErr = err
		if k.must(layer.Enforced, "nothing has changed"); len(k.doubts) != 0 {
			t.Errorf("doubts %q with the summary's error %v", k.doubts, err)
		}
	}
}

// The kernel has our rule, but iptables prints it with one more match: then it is not ours.
func TestIptablesPrintsMore(t *testing.T) {
	k := keep(t, NFT)
	k.repair()
	k.lie = func(lines []string) []string {
		last := len(lines) - 1
		return append(lines[:last], strings.Replace(lines[last], " -c ", " -m comment --comment x -c ", 1))
	}
	f := k.must(layer.Missing, "with a match more")
	if f.Rules != nil {
		t.Errorf("read back: %q", f.Rules)
	}
}

// Each family asks for its own endpoint, in every chain.
func TestEndpointOfAFamily(t *testing.T) {
	for _, family := range imds.Families {
		for _, dormant := range []bool{false, true} {
			f := &flawed{fakeForward: newFake(NFT)}
			f.dormant = dormant
			table := &Table{family: family, forward: f}
			table.Look(policyOf(t, policy.Drop, "eni+"), func(string) {})
			if f.scope.Address != family.Endpoint().Addr() {
				t.Errorf("%s, dormant %t: asked for %s", family, dormant, f.scope.Address)
			}
		}
	}
}

// Our own table, too, may be put to sleep or hooked elsewhere; its packets count.
func TestOwnTableThatIsUseless(t *testing.T) {
	k, f := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
	f.dormant = true
	k.repair()
	f.fakeForward.own[0].kernel.Packets = 7
	if got := k.must(layer.Enforced, "in our own table"); got.Blocked != 7 {
		t.Errorf("%d packets", got.Blocked)
	}
	for name, change := range map[string]func(*netfilter.NFTChain){
		"dormant": func(c *netfilter.NFTChain) { c.Dormant = true },
		"no hook": func(c *netfilter.NFTChain) { c.Type = "" },
	} {
		f.own = change
		if got := k.must(layer.Missing, name); !strings.Contains(got.Detail, "table filter is dormant") {
			t.Errorf("%s: the detail is %q", name, got.Detail)
		}
	}
	f.own = nil
	if k.repair() != layer.Enforced {
		t.Error("not in force any more")
	}
	// Put in anew, the counters are at zero.
	f.fakeForward.own = f.fakeForward.own[:0]
	k.look()
	k.repair()
	f.fakeForward.own[0].kernel.Packets = 9
	if got := k.must(layer.Enforced, "put in anew"); got.Blocked != 16 {
		t.Errorf("%d packets", got.Blocked)
	}
	f.fakeForward.own = append([]fakeRule{f.other("-j ACCEPT", accept)}, f.fakeForward.own...)
	k.repair()
	f.fakeForward.own[0].kernel.Packets = 20
	if got := k.must(layer.Enforced, "moved to the top"); got.Blocked != 36 {
		t.Errorf("%d packets", got.Blocked)
	}
}

// A FORWARD that is put to sleep and woken again keeps its counters, and no packet is counted twice.
func TestPacketsOfAForwardThatSleeps(t *testing.T) {
	k, f := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
	f.lie = k.counted
	k.chain[0].kernel.Packets = 5
	for _, c := range []struct {
		dormant bool
		own     uint64
		want    uint64
	}{{false, 0, 5}, {true, 7, 12}, {false, 7, 12}, {true, 8, 13}} {
		k.dormant = c.dormant
		if k.repair(); len(k.own) > 0 {
			k.own[0].kernel.Packets = c.own
		}
		if got := k.must(layer.Enforced, "kept"); got.Blocked != c.want {
			t.Errorf("dormant %t: %d packets, want %d", c.dormant, got.Blocked, c.want)
		}
	}
}

// A backend that is used again after another has counted on from where it was.
func TestPacketsOfABackendThatIsUsedAgain(t *testing.T) {
	k, f := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
	f.lie = k.counted
	k.chain[0].kernel.Packets = 5
	for i, b := range []Backend{NFT, Legacy, NFT} {
		k.fakeForward.backend = b
		// The two have separate chains; that of the fake counts 5 in either.
		want := uint64(5)
		if i > 0 {
			want = 10
		}
		if got := k.must(layer.Enforced, string(b)); got.Blocked != want {
			t.Errorf("%s: %d packets, want %d", b, got.Blocked, want)
		}
	}
}

// In a fight the backend is chosen at every other look at least.
func TestBackendIsChosenInAFight(t *testing.T) {
	k := keep(t, NFT)
	k.repair()
	k.must(layer.Enforced, "at the start")
	k.fakeForward.backend = Legacy
	for range 2 {
		k.flush()
		k.look()
	}
	if f := k.must(layer.Missing, "in a fight"); f.Place != string(Legacy) {
		t.Errorf("still in %s", f.Place)
	}
}

// Any number of deletions is done, a bounded number at a time, and the first failure ends it.
func TestReplaceAll(t *testing.T) {
	handles := make([]uint64, 2*netfilter.MaxDeleted+1)
	for i := range handles {
		handles[i] = uint64(i)
	}
	top := []netfilter.NFTRule{{Handle: 7}}
	for _, c := range []struct {
		handles, calls, fail int
	}{
		{0, 1, 0}, {1, 1, 0}, {netfilter.MaxDeleted, 1, 0}, {netfilter.MaxDeleted + 1, 2, 0}, {2 * netfilter.MaxDeleted, 2, 0},
		{2*netfilter.MaxDeleted + 1, 3, 0}, {2*netfilter.MaxDeleted + 1, 1, 1}, {2*netfilter.MaxDeleted + 1, 2, 2}, {2*netfilter.MaxDeleted + 1, 3, 3},
	} {
		calls := 0
		var deleted []uint64
		err := replaceAll(func(put []netfilter.NFTRule, remove []uint64) error {
			calls++
			if (len(put) == 1) != (calls == 1) || len(remove) > netfilter.MaxDeleted {
				t.Errorf("%d handles: call %d puts %d rules and deletes %d", c.handles, calls, len(put), len(remove))
			}
			if calls == c.fail {
				return errBroken
			}
			deleted = append(deleted, remove...)
			return nil
		}, top, handles[:c.handles])
		if calls != c.calls || errors.Is(err, errBroken) != (c.fail > 0) {
			t.Errorf("%d handles, failing at %d: %d calls, %v", c.handles, c.fail, calls, err)
		}
		if c.fail == 0 && !slices.Equal(deleted, handles[:c.handles]) {
			t.Errorf("%d handles: %d deleted", c.handles, len(deleted))
		}
	}
}

// A line that looks like ours above it may come from another imds-guard, and only then is that said.
func TestTwin(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	for _, c := range []struct {
		line string
		twin bool
	}{
		{"-d 169.254.169.254/32 -i eni0 -j DROP", true},
		{"-d 169.254.169.254/32 -i eni+ -j REJECT --reject-with icmp-port-unreachable", true},
		{"-d 169.254.169.254/32 -i eni+ -p tcp -j REJECT --reject-with tcp-reset", true},
		{"-d 169.254.169.254/32 -j DROP", false},
		{"-i eni+ -j DROP", false},
		{"-d 169.254.169.253/32 -i eni+ -j DROP", false},
		{"-d 169.254.169.254/32 -i eni0 -j LOG", false},
		{"-d 169.254.169.254/32 -i eni0 -m comment --comment x -j DROP", false},
		{"-d 169.254.169.254/32 -i eni+ -m comment --comment x -j DROP", false},
	} {
		state, detail := Compare(want, chainOf(t, false, c.line, ours))
		if state != Displaced || !strings.Contains(detail, "stands where") || strings.Contains(detail, "another imds-guard") != c.twin {
			t.Errorf("%q above: %s (%s)", c.line, state, detail)
		}
	}
	// One of the wanted rules themselves, in the place of another, is nobody else's.
	two := wanted(t, policy.Drop, "eni+", "vlan+")
	state, detail := Compare(two, chainOf(t, false, "-d 169.254.169.254/32 -i vlan+ -j DROP", ours))
	if state != Displaced || strings.Contains(detail, "another imds-guard") {
		t.Errorf("in the wrong order: %s (%s)", state, detail)
	}
}

// Which rules are written, and the block that iptables-restore takes.
func TestDesired(t *testing.T) {
	for _, c := range []struct {
		family  imds.Family
		verdict policy.Verdict
		want    string
	}{
		{imds.IPv4, policy.Drop, "-d 169.254.169.254/32 -i eni+ -j DROP; -d 169.254.169.254/32 -i vlan0 -j DROP"},
		{imds.IPv6, policy.Drop, "-d fd00:ec2::254/128 -i eni+ -j DROP; -d fd00:ec2::254/128 -i vlan0 -j DROP"},
		{imds.IPv4, policy.Reject, "-d 169.254.169.254/32 -i eni+ -p tcp -j REJECT --reject-with tcp-reset; " +
			"-d 169.254.169.254/32 -i eni+ -j REJECT --reject-with icmp-port-unreachable; " +
			"-d 169.254.169.254/32 -i vlan0 -p tcp -j REJECT --reject-with tcp-reset; " +
			"-d 169.254.169.254/32 -i vlan0 -j REJECT --reject-with icmp-port-unreachable"},
		{imds.IPv6, policy.Reject, "-d fd00:ec2::254/128 -i eni+ -p tcp -j REJECT --reject-with tcp-reset; " +
			"-d fd00:ec2::254/128 -i eni+ -j REJECT --reject-with icmp6-port-unreachable; " +
			"-d fd00:ec2::254/128 -i vlan0 -p tcp -j REJECT --reject-with tcp-reset; " +
			"-d fd00:ec2::254/128 -i vlan0 -j REJECT --reject-with icmp6-port-unreachable"},
	} {
		rules := Desired(c.family, policyOf(t, c.verdict, "eni+", "vlan0"))
		var texts []string
		for _, r := range rules {
			texts = append(texts, strings.Join(r.Args(), " "))
		}
		if got := strings.Join(texts, "; "); got != c.want {
			t.Errorf("%s %s: %q, want %q", c.family, c.verdict, got, c.want)
		}
		block := "*filter\n-A FORWARD " + strings.ReplaceAll(c.want, "; ", "\n-A FORWARD ") + "\nCOMMIT\n"
		if got := Format(rules); got != block {
			t.Errorf("%s %s: the block is %q, want %q", c.family, c.verdict, got, block)
		}
	}
}

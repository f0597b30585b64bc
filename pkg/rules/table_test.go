package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// kept is a table over a fake, looked at and repaired as a keeper does it.
type kept struct {
	*Table
	*fakeForward
	t      *testing.T
	policy policy.Policy
	doubts []string
}

func keep(t *testing.T, b Backend) *kept { return keepPolicy(t, b, policyOf(t, policy.Drop, "eni+")) }

func keepPolicy(t *testing.T, b Backend, p policy.Policy) *kept {
	f := newFake(b)
	return &kept{Table: &Table{family: imds.IPv4, forward: f}, fakeForward: f, t: t, policy: p}
}

func (k *kept) look() layer.Finding {
	k.doubts = nil
	return k.Table.Look(k.policy, func(why string) { k.doubts = append(k.doubts, why) })
}

// repair looks and repairs, if there is something to repair.
func (k *kept) repair() layer.State {
	k.t.Helper()
	f := k.look()
	if f.State.Drifted() && f.State != layer.Unknown {
		if err := k.Table.Repair(k.policy, f); err != nil {
			k.t.Errorf("repairing %s: %v", f.State, err)
		}
	}
	return f.State
}

// must looks, and fails the test unless the state is this one.
func (k *kept) must(want layer.State, when string) layer.Finding {
	k.t.Helper()
	f := k.look()
	if f.State != want {
		k.t.Errorf("%s: %s (%s), want %s", when, f.State, f.Detail, want)
	}
	return f
}

// first fails the test unless the chain begins with these rules, and has none of them again.
func (k *kept) first(texts ...string) {
	k.t.Helper()
	list := k.texts()
	if len(list) < len(texts) || !slices.Equal(list[:len(texts)], texts) {
		k.t.Errorf("the chain is %q, want %q first", list, texts)
	}
	for _, text := range texts {
		if n := strings.Count(strings.Join(list, "\n")+"\n", text+"\n"); n != 1 {
			k.t.Errorf("%d copies of %q in %q", n, text, list)
		}
	}
}

const oursText = "-A FORWARD " + ours

var (
	accept = netfilter.NFTRule{Target: "DROP"} // as an immediate that does not stop is read
	drops  = netfilter.NFTRule{Target: "DROP", Stops: true}
	odd    = netfilter.NFTRule{Odd: true}
	jump   = netfilter.NFTRule{Target: "DROP", Jump: true}
)

var backends = []Backend{NFT, Legacy}

func TestTableRepairs(t *testing.T) {
	for _, b := range backends {
		for _, c := range []struct {
			name   string
			state  layer.State
			tamper func(*kept)
		}{
			{"flushed", layer.Missing, func(k *kept) { k.flush() }},
			{"accept above", Shadowed, func(k *kept) { k.above("-j ACCEPT", accept) }},
			{"harmless above", Displaced, func(k *kept) { k.above("-i docker0 -j ACCEPT", accept) }},
			{"a second copy", Duplicate, func(k *kept) { k.chain = append(k.chain, k.written(wanted(t, policy.Drop, "eni+")[0])) }},
		} {
			k := keep(t, b)
			k.below("-j ACCEPT", accept)
			if s := k.repair(); s != layer.Missing {
				t.Errorf("%s: at the start: %s", b, s)
			}
			k.must(layer.Enforced, "after the start")
			c.tamper(k)
			if s := k.repair(); s != c.state {
				t.Errorf("%s: %s is %s, want %s", b, c.name, s, c.state)
			}
			k.must(layer.Enforced, "after the repair of "+c.name)
			k.first(oursText)
		}
	}
}

// What the kernel has lost is put back without a command, once the kernel's own form of the rules is known.
func TestLostRulesArePutBackWithoutACommand(t *testing.T) {
	k := keepPolicy(t, NFT, policyOf(t, policy.Reject, "eni+", "vlan+"))
	k.repair()
	k.must(layer.Enforced, "after the start")
	list := k.texts()
	lists, inserts, moves := k.lists, k.fakeForward.inserts, k.moves
	k.flush()
	if s := k.repair(); s != layer.Missing {
		t.Errorf("flushed: %s", s)
	}
	if k.lists != lists || k.fakeForward.inserts != inserts || k.moves != moves {
		t.Error("a command was run before the rules were back")
	}
	k.must(layer.Enforced, "after the repair")
	if !slices.Equal(k.texts(), list) {
		t.Errorf("the chain is %q, was %q", k.texts(), list)
	}
}

// Rules that iptables can't list, or prints as what they are not.
func TestNativeRulesAbove(t *testing.T) {
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errors.New("use 'nft' tool")}
	for _, c := range []struct {
		name    string
		state   layer.State
		text    string
		kernel  netfilter.NFTRule
		listErr error
	}{
		{"accept that makes iptables fail", Shadowed, "-j ACCEPT", odd, incompatible},
		{"drop that makes iptables fail", Displaced, "-j DROP", drops, incompatible},
		{"jump to a chain called LOG", Shadowed, "-j LOG", jump, nil},
		{"look-alike that jumps to a chain called DROP", Shadowed, ours, jump, nil},
		{"look-alike that drops less", Shadowed, ours, odd, nil},
		{"accept printed as harmless", Shadowed, "-d 10.0.0.1/32 -j ACCEPT", odd, nil},
	} {
		k := keep(t, NFT)
		k.repair()
		k.must(layer.Enforced, "after the start")
		k.above(c.text, c.kernel)
		native := k.chain[0]
		k.listErr = c.listErr
		if s := k.repair(); s != c.state {
			t.Errorf("%s: %s, want %s", c.name, s, c.state)
		}
		if f := k.must(layer.Enforced, c.name+", after the repair"); c.listErr != nil && (f.Detail == "" || !errors.Is(f.Err, c.listErr)) {
			t.Errorf("%s: it is not said that iptables can't list the chain: %+v", c.name, f.Reading)
		}
		if len(k.chain) != 2 || !k.chain[0].kernel.Plain || k.chain[1].kernel.Handle != native.kernel.Handle {
			t.Errorf("%s: the chain is %+v", c.name, k.chain)
		}
		for range 10 {
			k.repair()
		}
		if k.fakeForward.inserts > 1 || len(k.chain) != 2 {
			t.Errorf("%s: %d inserts, %d rules", c.name, k.fakeForward.inserts, len(k.chain))
		}
	}
}

// Something flushes and restores ever more rules, some of which name the endpoint: that is not a wrong reading.
func TestGrowingRestoreIsAFight(t *testing.T) {
	for _, b := range backends {
		for _, foreign := range []string{"-s 10.0.0.1/32 -j ACCEPT", "-d 169.254.169.254/32 -j ACCEPT"} {
			if b == Legacy && strings.Contains(foreign, "169.254") {
				continue // without handles, see TestOthersRulesEndThePause
			}
			k := keep(t, b)
			for round := range 200 {
				restore := func() {
					k.flush()
					for range round + 5 {
						k.below(foreign, accept)
					}
				}
				k.fakeForward.meddle = restore
				if round%2 == 0 {
					k.known = nil // the rule has to be inserted by a command
				}
				if s := k.repair(); s == layer.Unknown {
					t.Fatalf("%s, %s: given up after %d restores: %s", b, foreign, round, k.look().Detail)
				}
				if f := k.look(); !f.State.Drifted() || f.State == layer.Unknown {
					t.Fatalf("%s, %s: after restore %d: %s (%s)", b, foreign, round, f.State, f.Detail)
				}
			}
			k.repair()
			k.must(layer.Enforced, "when the restores have ended")
		}
	}
}

// A listing that never shows what is there ends the inserts after a few, however often it is looked.
func TestLyingListIsBoundedWithoutTheKernel(t *testing.T) {
	for name, lie := range map[string]func([]string) []string{
		"other form": func(lines []string) []string {
			for i := range lines {
				lines[i] = strings.Replace(lines[i], "-j DROP", "-j DROP --new-option", 1)
			}
			return lines
		},
		"nothing": func(lines []string) []string { return lines[:1] },
	} {
		for _, b := range backends {
			k := keep(t, b)
			k.lie, k.blind = lie, true
			for range 100 {
				k.repair()
			}
			if n := k.fakeForward.inserts; n != maxUnrecognised {
				t.Errorf("%s, %s: %d inserts", b, name, n)
			}
			f := k.must(layer.Unknown, name)
			if !errors.Is(f.Err, errUnrecognised) || f.Again <= 0 || f.Again > firstPause {
				t.Errorf("%s, %s: %+v", b, name, f)
			}
			k.lie = nil
			k.look()
			k.must(Duplicate, "when iptables shows them")
		}
	}
}

// The same where the summary can't be had: then every insert that is not listed counts.
func TestLyingListIsBoundedWithoutTheSummary(t *testing.T) {
	k := keep(t, Legacy)
	k.mute, k.lie = true, func(lines []string) []string { return lines[:1] }
	for range 100 {
		k.repair()
	}
	if n := k.fakeForward.inserts; n != maxUnrecognised {
		t.Errorf("%d inserts", n)
	}
}

// A chain that iptables prints as it is, while others flush it and write elsewhere in the table, hides nothing.
func TestLegacyListing(t *testing.T) {
	line := func(text string) Chain { return Chain{Lines: []Line{{Text: text}}} }
	var l legacyListing
	for i, c := range []struct {
		chain    Chain
		extent   int
		inserted bool
		hidden   int
	}{
		{line("a"), 100, false, 0},
		{line("a"), 100, true, 0}, // the insert was undone
		{line("a"), 250, true, 1}, // it stayed, and is not printed
		{line("a"), 400, true, 2},
		{line("b"), 550, true, 2}, // something else is printed
		{line("b"), 550, false, 2},
		{line("b"), 300, false, 0}, // somebody takes them away
		{line("b"), unmeasured, false, 0},
		{line("b"), unmeasured, true, 1},
		{line("c"), unmeasured, true, 1},
		{line("c"), 100, true, 2},
	} {
		if l = l.next(c.chain, c.extent, c.inserted); l.hidden != c.hidden {
			t.Errorf("step %d: %d hidden, want %d", i, l.hidden, c.hidden)
		}
	}
}

// What is put back as the kernel had it, and is not recognised again, is bounded like every insert.
func TestUnrecognisedPutBackIsBounded(t *testing.T) {
	k := keep(t, NFT)
	k.repair()
	k.must(layer.Enforced, "at the start")
	k.flush()
	k.lie, k.blind = func(lines []string) []string { return lines[:1] }, true
	for range 100 {
		k.repair()
	}
	if len(k.chain) != maxUnrecognised || k.replaces == 0 {
		t.Errorf("the chain is %q, %d times put back", k.texts(), k.replaces)
	}
	k.must(layer.Unknown, "not recognised")
}

// In a fight what is put back is found gone without a fork.
func TestPutBackThatIsUndoneGoesOnWithoutACommand(t *testing.T) {
	k := keep(t, NFT)
	k.repair()
	k.must(layer.Enforced, "at the start")
	lists := k.lists
	for range 100 {
		k.flush()
		k.repair()
	}
	if k.replaces != 100 || k.lists != lists || k.fakeForward.inserts != 1 {
		t.Errorf("%d times put back, %d listings, %d inserts", k.replaces, k.lists-lists, k.fakeForward.inserts)
	}
}

// A table of our own in which nothing is recognised does not grow.
func TestOwnTableDoesNotGrow(t *testing.T) {
	k := keep(t, NFT)
	k.dormant, k.blind = true, true
	for range 100 {
		k.repair()
	}
	if len(k.own) != 1 {
		t.Errorf("%d rules", len(k.own))
	}
}

// The kernel's list is not understood, but iptables shows the rule: then iptables decides, the detail says so, and inserting
// ends.
func TestDistrustOfTheKernelsList(t *testing.T) {
	k := keep(t, NFT)
	k.blind = true
	k.repair()
	f := k.must(layer.Enforced, "by what iptables prints")
	if !strings.Contains(f.Detail, "not understood") {
		t.Errorf("it is not said: %q", f.Detail)
	}
	for range 10 {
		k.repair()
	}
	if len(k.chain) != 1 {
		t.Errorf("the chain is %q", k.texts())
	}
	k.above("-j ACCEPT", accept)
	if s := k.repair(); s != Shadowed {
		t.Errorf("shadowed: %s", s)
	}
	k.first(oursText)
	k.blind = false
	if f := k.must(layer.Enforced, "when both agree again"); f.Detail != "" || k.distrusted {
		t.Errorf("still distrusted: %q", f.Detail)
	}
}

// What iptables prints as another rule is not ours, whatever the kernel's list says: one more is put in, and if iptables shows
// none of them, no more than a few.
func TestIptablesContradictsTheKernel(t *testing.T) {
	other := func(line string) string { return strings.Replace(line, "-i eni+", "-i eni0", 1) }
	k := keep(t, NFT)
	k.repair()
	k.lie = func(lines []string) []string {
		last := len(lines) - 1
		return append(lines[:last], other(lines[last]))
	}
	if s := k.repair(); s != layer.Missing {
		t.Errorf("contradicted: %s", s)
	}
	k.must(layer.Enforced, "with one that iptables shows")

	for _, known := range []bool{false, true} {
		k = keep(t, NFT)
		before := 0
		if known { // as after an upgrade of iptables: what could be put back without a command must not be, for ever
			k.repair()
			k.must(layer.Enforced, "before iptables prints it as another")
			before = 1
		}
		k.lie = func(lines []string) []string {
			for i := range lines {
				lines[i] = other(lines[i])
			}
			return lines
		}
		for range 100 {
			k.repair()
		}
		k.must(layer.Unknown, "with none that iptables shows")
		if n := len(k.chain) - before; n != maxUnrecognised {
			t.Errorf("known %t: %d inserts", known, n)
		}
	}
}

// A policy without interfaces protects nobody.
func TestEmptyPolicy(t *testing.T) {
	for _, b := range backends {
		keepPolicy(t, b, policy.New(nil, policy.Drop)).must(layer.Unknown, string(b))
	}
}

// However many copies there are, ours gets to the top at once, and the rest goes.
func TestThousandsOfCopies(t *testing.T) {
	k := keep(t, NFT)
	k.repair()
	ours := wanted(t, policy.Drop, "eni+")[0]
	for range 3*netfilter.MaxDeleted + 5 {
		k.chain = append(k.chain, k.written(ours))
	}
	k.above("-j ACCEPT", accept)
	if s := k.repair(); s != Shadowed {
		t.Errorf("thousands of copies: %s", s)
	}
	k.must(layer.Enforced, "after the repair")
	k.first(oursText)
}

// A line that can't be read is somebody else's, and dangerous; the rest of the list holds. A comment may have line breaks.
func TestUnreadableLines(t *testing.T) {
	k := keep(t, Legacy)
	k.below("-m comment --comment \"a\nb\" -j RETURN", accept)
	k.below("-m what -j RETURN", accept)
	k.lie = func(lines []string) []string {
		text := strings.Join(lines, "\n")
		return strings.Split(strings.ReplaceAll(text, "what -c 0 0", "what"), "\n") // as go-iptables splits it
	}
	k.repair()
	k.must(layer.Enforced, "with such lines below")
	k.above("-m what -j RETURN", accept)
	if s := k.repair(); s != Shadowed {
		t.Errorf("with such a line above: %s", s)
	}
	k.must(layer.Enforced, "after the repair")
}

// A long chain is not listed at all.
func TestLongChainIsNotListed(t *testing.T) {
	k := keep(t, NFT)
	for range maxListed + 1 {
		k.below("-s 10.0.0.1/32 -j ACCEPT", accept)
	}
	k.repair()
	lists := k.lists
	k.must(layer.Enforced, "long")
	k.above("-j ACCEPT", accept)
	if s := k.repair(); s != Shadowed {
		t.Errorf("accept above: %s", s)
	}
	k.must(layer.Enforced, "after the repair")
	k.first(oursText)
	k.chain = append(k.chain[1:], k.chain[0])
	if s := k.repair(); s != Shadowed {
		t.Errorf("ours at the end: %s", s)
	}
	k.first(oursText)
	if k.lists != lists+1 && k.lists != lists {
		t.Errorf("%d listings", k.lists-lists)
	}
}

// A FORWARD that was made dormant, or recreated so that its rules have no effect: the rules go into our own table.
func TestUselessChain(t *testing.T) {
	for _, c := range []struct {
		name, kind string
		hook       uint32
		dormant    bool
		words      string
	}{
		{"no hook", "", 0, false, "no hook"},
		{"input", "filter", unix.NF_INET_LOCAL_IN, false, "hook input"},
		{"nat", "nat", unix.NF_INET_POST_ROUTING, false, "type nat at hook postrouting"},
		{"a type that filters nothing", "route", unix.NF_INET_FORWARD, false, "type route"},
		{"dormant", "filter", unix.NF_INET_FORWARD, true, "dormant"},
	} {
		for _, known := range []bool{true, false} {
			for _, left := range []bool{true, false} { // of ours, in the useless chain
				k := keepPolicy(t, NFT, policyOf(t, policy.Reject, "eni+"))
				if known {
					k.repair()
					k.must(layer.Enforced, "at the start")
				}
				if !left {
					k.flush()
				}
				k.kind, k.hook, k.dormant = c.kind, c.hook, c.dormant
				name := fmt.Sprintf("%s, known %t, left %t", c.name, known, left)
				if f := k.must(layer.Missing, name); !strings.Contains(f.Detail, c.words) {
					t.Errorf("%s: the detail is %q", name, f.Detail)
				}
				for range 3 {
					k.repair()
				}
				if f := k.must(layer.Enforced, name); !strings.Contains(f.Detail, c.words) || !strings.Contains(f.Detail, ownTable) {
					t.Errorf("%s: the detail is %q", name, f.Detail)
				}
				if want := Desired(imds.IPv4, k.policy); len(k.own) != 2 || !isRule(k.own[0].kernel, want[0]) || !isRule(k.own[1].kernel, want[1]) {
					t.Errorf("%s: the own table has %+v", name, k.own)
				}
				k.own = k.own[:1]
				if s := k.repair(); s != layer.Missing {
					t.Errorf("%s: with one rule of two: %s", name, s)
				}
				k.must(layer.Enforced, name+", repaired")
				if len(k.own) != 2 {
					t.Errorf("%s: the own table has %+v", name, k.own)
				}
			}
		}
	}
	k := keep(t, NFT)
	k.repair()
	k.priority = 300
	k.must(layer.Enforced, "at another priority of the same hook")
	if k.own != nil {
		t.Error("a table of our own for nothing")
	}
}

// What the legacy summary shows counts before iptables has answered.
func TestLegacySummaryMakesDoubt(t *testing.T) {
	k := keep(t, Legacy)
	k.below("-j ACCEPT", accept)
	k.repair()
	k.must(layer.Enforced, "after the start")
	if k.look(); len(k.doubts) != 0 {
		t.Errorf("doubts without a change: %q", k.doubts)
	}
	k.above("-j ACCEPT", accept)
	k.listErr = &CommandError{Operation: OpList, Reason: ReasonLock, Err: errors.New("the xtables lock")}
	k.must(layer.Unknown, "while the lock is held")
	if len(k.doubts) != 1 {
		t.Errorf("%d doubts", len(k.doubts))
	}
}

func TestBackendChange(t *testing.T) {
	k := keep(t, NFT)
	k.repair()
	f := k.must(layer.Enforced, "nft")
	k.fakeForward.backend = Legacy
	k.flush()
	k.repair()
	if k.must(layer.Enforced, "put back before another backend is chosen"); k.replaces != 1 {
		t.Errorf("%d times put back", k.replaces)
	}
	k.flush()
	g := k.must(layer.Missing, "legacy")
	if f.Place == g.Place || g.Place != string(Legacy) {
		t.Errorf("places %q, %q", f.Place, g.Place)
	}
	k.repair()
	k.must(layer.Enforced, "installed in legacy")
}

// The policy is an argument: another one is enforced from the next look on, and the rules of the first stay.
func TestPolicyIsReplaceable(t *testing.T) {
	for _, b := range backends {
		k := keep(t, b)
		k.repair()
		k.policy = policyOf(t, policy.Reject, "eni+", "vlan+")
		k.repair()
		k.must(layer.Enforced, fmt.Sprintf("%s, the second policy", b))
		if n := len(k.chain); n != 5 {
			t.Errorf("%s: %d rules in %q", b, n, k.texts())
		}
	}
}

// Every finding of another layer is refused before anything is done.
func TestRepairTakesOnlyItsOwnFinding(t *testing.T) {
	k := keep(t, NFT)
	if err := k.Table.Repair(k.policy, layer.Finding{}); err == nil || len(k.chain) != 0 {
		t.Errorf("err %v, chain %q", err, k.texts())
	}
}

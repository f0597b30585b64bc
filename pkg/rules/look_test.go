package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// flawed is a FORWARD of which single calls go wrong.
type flawed struct {
	*fakeForward
	reads      int
	reading    func(read int, c *netfilter.NFTChain) error // changes what the kernel says at its nth reading
	listing    func()                                      // called before each listing
	unloaded   bool                                        // the legacy table is
	summaryErr error
	writeErr   error // of every write
	// What our own table is like, and why it can't be read.
	own    func(c *netfilter.NFTChain)
	ownErr error
	scope  netfilter.Scope // of the last reading of either chain
}

func (f *flawed) Kernel(s netfilter.Scope) (netfilter.NFTChain, error) {
	f.reads++
	f.scope = s
	c, err := f.fakeForward.Kernel(s)
	if f.reading != nil {
		err = f.reading(f.reads, &c)
	}
	return c, err
}

func (f *flawed) List(b Backend) ([]string, error) {
	if f.listing != nil {
		f.listing()
	}
	return f.fakeForward.List(b)
}

func (f *flawed) Insert(b Backend, r Rule) error {
	if f.writeErr != nil {
		return f.writeErr
	}
	return f.fakeForward.Insert(b, r)
}

func (f *flawed) Move(b Backend, remove map[Rule]int, top []Rule) error {
	if f.writeErr != nil {
		return f.writeErr
	}
	return f.fakeForward.Move(b, remove, top)
}

func (f *flawed) Replace(top []netfilter.NFTRule, remove []uint64) error {
	if f.writeErr != nil {
		return f.writeErr
	}
	return f.fakeForward.Replace(top, remove)
}

func (f *flawed) Summary() (netfilter.LegacyInfo, bool, error) {
	if f.unloaded || f.summaryErr != nil {
		return netfilter.LegacyInfo{}, false, f.summaryErr
	}
	return f.fakeForward.Summary()
}

func (f *flawed) OwnKernel(s netfilter.Scope) (netfilter.NFTChain, error) {
	f.scope = s
	c, err := f.fakeForward.OwnKernel(s)
	if f.own != nil {
		f.own(&c)
	}
	if f.ownErr != nil {
		return netfilter.NFTChain{}, f.ownErr
	}
	return c, err
}

func (f *flawed) MakeOwn(rules []netfilter.NFTRule) error {
	if f.writeErr != nil {
		return f.writeErr
	}
	return f.fakeForward.MakeOwn(rules)
}

// keepFlawed is a table that is in force, and the flaws to come.
func keepFlawed(t *testing.T, b Backend, p policy.Policy) (*kept, *flawed) {
	k := keepPolicy(t, b, p)
	for range 2 {
		k.repair()
	}
	k.must(layer.Enforced, "at the start")
	f := &flawed{fakeForward: k.fakeForward}
	k.Table.forward = f
	return k, f
}

var errBroken = errors.New("broken")

// Whatever of a look fails, its error is told, and nothing is claimed.
func TestLooksThatFail(t *testing.T) {
	command := &CommandError{Family: imds.IPv4, Operation: OpList, Reason: ReasonLock, Err: errBroken}
	nth := func(n int) func(*kept, *flawed) {
		return func(_ *kept, f *flawed) {
			f.reading = func(read int, _ *netfilter.NFTChain) error {
				if read == n {
					return errBroken
				}
				return nil
			}
		}
	}
	for _, c := range []struct {
		name    string
		backend Backend
		flaw    func(*kept, *flawed)
		state   layer.State
		detail  string // a part of it
		err     error
	}{
		{"the kernel can't be read", NFT, nth(1), layer.Unknown, "broken", errBroken},
		{"the kernel can't be read a second time", NFT, nth(2), layer.Unknown, "broken", errBroken},
		{"neither can be read", NFT, func(k *kept, f *flawed) { nth(2)(k, f); f.listErr = command }, layer.Unknown, "broken", errBroken},
		{"iptables fails", NFT, func(_ *kept, f *flawed) { f.listErr = command }, layer.Enforced, "by the kernel's own list alone: running iptables", command},
		{"iptables prints rubbish", NFT, func(_ *kept, f *flawed) { f.lie = func([]string) []string { return nil } }, layer.Enforced,
			"by the kernel's own list alone: running iptables to list ipv4 rules: FORWARD is listed without a policy", nil},
		{"the rules go while iptables fails", NFT, func(k *kept, f *flawed) { f.listErr, f.listing = command, k.flush }, layer.Missing, "is not in the chain", command},
		{"our own table can't be read", NFT, func(_ *kept, f *flawed) { f.dormant, f.ownErr = true, errBroken }, layer.Unknown, "broken", errBroken},
		{"the table is put to sleep while iptables fails", NFT, func(k *kept, f *flawed) {
			f.listErr, f.listing = command, func() { k.dormant = true }
		}, layer.Missing, "is dormant", nil},
		{"the table is put to sleep while iptables lists it", NFT, func(k *kept, f *flawed) { f.listing = func() { k.dormant = true } },
			layer.Missing, "is dormant", nil},
		{"the kernel's list is cut off", NFT, func(_ *kept, f *flawed) {
			f.reading = func(_ int, c *netfilter.NFTChain) error { c.Incomplete = true; return nil }
		}, layer.Enforced, "by the kernel's own list alone: rules keep changing", nil},
		{"somebody writes all the time", NFT, func(k *kept, f *flawed) { f.listing = func() { k.below("-j ACCEPT", accept) } }, layer.Enforced,
			"by the kernel's own list alone: rules keep changing", nil},
		{"iptables lists another moment", NFT, func(_ *kept, f *flawed) {
			f.lie = func(lines []string) []string { return append(lines, "-A FORWARD -c 0 0 -j ACCEPT") }
		}, layer.Enforced, "rules keep changing", nil},
		{"iptables lists ours at another moment", NFT, func(k *kept, f *flawed) {
			k.below("-j ACCEPT", accept)
			f.lie = func(lines []string) []string { return append(lines[:2], lines[1]) }
		}, layer.Enforced, "rules keep changing", nil},

		{"iptables fails", Legacy, func(_ *kept, f *flawed) { f.listErr = command }, layer.Unknown, "broken", command},
		{"no summary", Legacy, func(_ *kept, f *flawed) { f.summaryErr = errBroken }, layer.Enforced, "", nil},
		{"no table", Legacy, func(_ *kept, f *flawed) { f.unloaded, f.listErr = true, command }, layer.Missing, "the table is not loaded", nil},
	} {
		k, f := keepFlawed(t, c.backend, policyOf(t, policy.Drop, "eni+"))
		c.flaw(k, f)
		got := k.look()
		if got.State != c.state || !strings.Contains(got.Detail, c.detail) || (got.Detail == "") != (c.detail == "") {
			t.Errorf("%s, %s: %s (%s)", c.backend, c.name, got.State, got.Detail)
		}
		if c.err != nil && !errors.Is(got.Err, c.err) || c.err == nil && got.State == layer.Enforced && got.Err != nil && c.name != "iptables prints rubbish" {
			t.Errorf("%s, %s: the error is %v, want %v", c.backend, c.name, got.Err, c.err)
		}
	}
}

// Somebody writes in between: both are asked again, a few times.
func TestLookIsTriedAgain(t *testing.T) {
	for writes := range lookTries + 2 {
		k, f := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
		left := writes
		f.listing = func() {
			if left--; left >= 0 {
				k.below("-j ACCEPT", accept)
			}
		}
		before := k.lists
		got := k.look()
		if got.State != layer.Enforced || (got.Detail == "") != (writes < lookTries) {
			t.Errorf("%d writes: %s (%s)", writes, got.State, got.Detail)
		}
		if lists := k.lists - before; lists != min(writes+1, lookTries) {
			t.Errorf("%d writes: %d listings", writes, lists)
		}
	}
}

// The longest chain that iptables is asked for, and the shortest that it is not.
func TestLongestChainThatIsListed(t *testing.T) {
	for _, length := range []int{maxListed, maxListed + 1} {
		k, _ := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
		for len(k.chain) < length {
			k.below("-j ACCEPT", accept)
		}
		before := k.lists
		f := k.must(layer.Enforced, "long")
		if f.Detail != "" && !strings.Contains(f.Detail, "FORWARD has more than 512 rules") {
			t.Errorf("%d rules: %q", length, f.Detail)
		}
		if (f.Detail == "") != (length <= maxListed) || (k.lists > before) != (length <= maxListed) {
			t.Errorf("%d rules: %q after %d listings", length, f.Detail, k.lists-before)
		}
	}
}

// A change in the kernel's list makes the state doubtful before iptables is asked, unless iptables has called it harmless
// before.
func TestKernelMakesDoubt(t *testing.T) {
	for _, c := range []struct {
		name   string
		tamper func(*kept)
		state  layer.State
		first  int // doubts at the first look
		second int // at the one after that, nothing having been repaired
	}{
		{"nothing", func(*kept) {}, layer.Enforced, 0, 0},
		{"gone", func(k *kept) { k.flush() }, layer.Missing, 0, 0}, // which the kernel says alone, at once
		{"drop above", func(k *kept) { k.above("-j DROP", drops) }, Displaced, 0, 0},
		{"harmless above", func(k *kept) { k.above("-i docker0 -j ACCEPT", accept) }, Displaced, 1, 0},
		{"accept above", func(k *kept) { k.above("-j ACCEPT", accept) }, Shadowed, 1, 1},
		{"a second copy", func(k *kept) { k.chain = append(k.chain, k.written(wanted(t, policy.Drop, "eni+")[0])) }, Duplicate, 0, 0},
	} {
		k, _ := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
		c.tamper(k)
		k.must(c.state, c.name)
		first := len(k.doubts)
		k.must(c.state, c.name)
		if first != c.first || len(k.doubts) != c.second {
			t.Errorf("%s: %d doubts, then %d", c.name, first, len(k.doubts))
		}
	}
}

// Whichever of several rules exist, in whatever order, all end up at the top once each; no existing rule is ever missing in
// between, and no foreign rule is touched.
func TestEverySubsetIsRepaired(t *testing.T) {
	p := policyOf(t, policy.Reject, "eni+", "vlan+")
	want := Desired(imds.IPv4, p)
	var wantTexts []string
	for _, r := range want {
		wantTexts = append(wantTexts, r.String())
	}
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errBroken}
	for _, mode := range []string{"nft", "nft known", "nft without a listing", "legacy"} {
		for _, foreign := range []string{"", "-i docker0 -j ACCEPT", "-j ACCEPT"} {
			for subset := range 1 << len(want) {
				for _, backward := range []bool{false, true} {
					k := keepPolicy(t, NFT, p)
					if mode == "legacy" {
						k.fakeForward.backend = Legacy
					}
					if mode == "nft known" {
						k.repair()
						k.must(layer.Enforced, "at the start")
						k.flush()
					}
					if mode == "nft without a listing" {
						k.listErr = incompatible
					}
					for i, r := range want {
						if subset>>i&1 == 1 {
							at := len(k.chain)
							if backward {
								at = 0
							}
							k.chain = slices.Insert(k.chain, at, k.written(r))
						}
					}
					if foreign != "" {
						k.above(foreign, accept)
					}
					k.below("-j ACCEPT", accept)
					name := fmt.Sprintf("%s, %q above, subset %04b, backward %t", mode, foreign, subset, backward)
					for range 3 {
						before := k.texts()
						f := k.look()
						if err := k.Table.Repair(p, f); f.State.Drifted() && err != nil {
							t.Errorf("%s: %v", name, err)
						}
						for _, text := range before {
							if !slices.Contains(k.texts(), text) {
								t.Errorf("%s: %q was taken away", name, text)
							}
						}
					}
					k.must(layer.Enforced, name)
					k.first(wantTexts...)
					others := 1
					if foreign != "" {
						others = 2
					}
					if len(k.chain) != len(want)+others {
						t.Errorf("%s: the chain is %q", name, k.texts())
					}
				}
			}
		}
	}
}

// What was read back is told, whoever has read it.
func TestRulesOfAReading(t *testing.T) {
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errBroken}
	p := policyOf(t, policy.Reject, "eni+")
	want := Desired(imds.IPv4, p)
	texts := []string{want[0].String(), want[1].String()}
	for name, prepare := range map[string]func(k *kept){
		"nft":                   func(*kept) {},
		"the kernel alone":      func(k *kept) { k.listErr = incompatible },
		"iptables alone":        func(k *kept) { k.blind = true },
		"legacy":                func(k *kept) { k.fakeForward.backend = Legacy },
		"in our own table":      func(k *kept) { k.dormant = true },
		"twice in the chain":    func(k *kept) { k.chain = append(k.chain, k.written(want[0])) },
		"below somebody else's": func(k *kept) { k.above("-j ACCEPT", accept) },
	} {
		k := keepPolicy(t, NFT, p)
		if got := k.look().Rules; got != nil {
			t.Errorf("%s, nothing there: %q", name, got)
		}
		prepare(k)
		for range 3 {
			k.repair()
		}
		if got := k.look(); !slices.Equal(got.Rules, texts) || got.Place != string(k.fakeForward.backend) {
			t.Errorf("%s: %q in %s", name, got.Rules, got.Place)
		}
		if k.dormant {
			k.own = k.own[1:]
		} else {
			k.chain = k.chain[1:]
		}
		if got := k.look().Rules; !slices.Equal(got, texts[1:]) {
			t.Errorf("%s, the first one gone: %q", name, got)
		}
	}
}

// A repair that fails says so. Its rules are as they were, and their packets are not counted again; the next one may do.
func TestRepairsThatFail(t *testing.T) {
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errBroken}
	drop, reject := policyOf(t, policy.Drop, "eni+"), policyOf(t, policy.Reject, "eni+")
	for _, c := range []struct {
		name    string
		backend Backend
		policy  policy.Policy
		tamper  func(*kept)
	}{
		{"insert", NFT, drop, func(k *kept) { k.known = nil; k.flush() }},
		{"put back", NFT, drop, func(k *kept) { k.flush() }},
		{"move", NFT, drop, func(k *kept) { k.above("-j ACCEPT", accept) }},
		{"move directly", NFT, drop, func(k *kept) { k.above("-j ACCEPT", accept); k.listErr = incompatible }},
		{"our own table", NFT, drop, func(k *kept) {
			k.dormant = true
			k.look()
			k.own = []fakeRule{k.other("-j ACCEPT", accept), k.chain[0]}
		}},
		{"insert", Legacy, drop, func(k *kept) { k.flush() }},
		{"insert two", Legacy, reject, func(k *kept) { k.flush() }},
		{"move", Legacy, drop, func(k *kept) { k.above("-j ACCEPT", accept) }},
	} {
		k, f := keepFlawed(t, c.backend, c.policy)
		f.lie = k.counted
		k.chain[0].kernel.Packets = 5
		c.tamper(k)
		before := k.texts()
		f.writeErr = errBroken
		finding := k.look()
		if err := k.Table.Repair(k.policy, finding); !errors.Is(err, errBroken) {
			t.Errorf("%s, %s: %v", c.backend, c.name, err)
		}
		if !slices.Equal(k.texts(), before) {
			t.Errorf("%s, %s: the chain is %q", c.backend, c.name, k.texts())
		}
		if got := k.look().Blocked; got != finding.Blocked {
			t.Errorf("%s, %s: %d packets before, %d after", c.backend, c.name, finding.Blocked, got)
		}
		f.writeErr = nil
		k.repair()
		k.must(layer.Enforced, fmt.Sprintf("%s, %s, after another try", c.backend, c.name))
	}
}

// counted is a listing with the packet counters that the kernel has.
func (k *kept) counted(lines []string) []string {
	for i, r := range k.chain {
		lines[i+1] = strings.Replace(lines[i+1], "-c 0 0", fmt.Sprintf("-c %d 0", r.kernel.Packets), 1)
	}
	return lines
}

// The kernel's form of a lost rule is known only from a reading in which both agreed, and is forgotten when the backend
// changes.
func TestPutBackOnlyWhatIsKnown(t *testing.T) {
	k, _ := keepFlawed(t, NFT, policyOf(t, policy.Drop, "eni+"))
	if len(k.known) != 1 {
		t.Fatalf("known: %v", k.known)
	}
	k.policy = policyOf(t, policy.Drop, "eni+", "vlan+")
	inserts, replaces := k.fakeForward.inserts+k.moves, k.replaces
	k.flush()
	k.repair()
	if k.fakeForward.inserts+k.moves == inserts || k.replaces != replaces {
		t.Error("two rules were put back of which one was known")
	}
	k.must(layer.Enforced, "by commands")

	k.fakeForward.backend = Legacy
	k.look()
	k.fakeForward.backend = NFT
	k.flush()
	inserts, replaces = k.fakeForward.inserts+k.moves, k.replaces
	k.repair()
	if k.fakeForward.inserts+k.moves == inserts || k.replaces != replaces {
		t.Error("rules were put back as they were in another backend's time")
	}
	k.must(layer.Enforced, "by commands")
}

// The packets are counted over everything that is done to the rules, each once.
func TestBlockedOverRepairs(t *testing.T) {
	incompatible := &CommandError{Operation: OpList, Reason: ReasonIncompatible, Err: errBroken}
	for _, mode := range []string{"nft", "nft without a listing", "legacy"} {
		b := NFT
		if mode == "legacy" {
			b = Legacy
		}
		k := keepPolicy(t, b, policyOf(t, policy.Reject, "eni+"))
		if mode == "nft without a listing" {
			k.listErr = incompatible
		}
		hit := func(rule int, packets uint64) {
			for i := range k.chain {
				if k.chain[i].text == Desired(imds.IPv4, k.policy)[rule].String() {
					k.chain[i].kernel.Packets += packets
					break
				}
			}
		}
		k.lie = k.counted
		blocked := func(when string, want uint64) {
			t.Helper()
			if got := k.look().Blocked; got != want {
				t.Errorf("%s, %s: %d packets, want %d", mode, when, got, want)
			}
		}
		blocked("nothing there", 0)
		k.repair()
		k.repair()
		hit(0, 5)
		hit(1, 7)
		blocked("at first", 12)
		blocked("looked again", 12)
		hit(1, 1)
		blocked("one more", 13)
		k.above("-j ACCEPT", accept)
		k.repair()
		hit(0, 8)
		hit(1, 8)
		blocked("moved to the top, and then as many as before", 29)
		k.flush()
		blocked("flushed", 29)
		k.repair()
		k.repair()
		blocked("put back", 29)
		hit(0, 3)
		blocked("fewer than before", 32)
		k.chain = append(k.chain, k.written(Desired(imds.IPv4, k.policy)[0]))
		k.chain[len(k.chain)-1].kernel.Packets = 2
		blocked("a second copy", 34)
		k.repair()
		hit(0, 9)
		blocked("one copy again, and then more than before", 43)
	}
}

func TestIDOfATable(t *testing.T) {
	for _, f := range imds.Families {
		table := NewTable(f, nil)
		if got, want := table.ID(), (layer.ID{Name: "iptables", Family: f}); got != want || table.forward.(*nodeForward) == nil {
			t.Errorf("%+v", table)
		}
	}
}

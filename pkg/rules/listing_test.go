package rules

import (
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// A listing is accepted only if it is complete; output that is not a list of FORWARD counts as a failed command.
func TestListRefuses(t *testing.T) {
	for name, lines := range map[string][]string{
		"nothing":                     nil,
		"no policy":                   {"-N FORWARD"},
		"a rule first":                {"-A FORWARD -c 0 0 -j DROP"},
		"another chain's policy":      {"-P INPUT ACCEPT -c 0 0"},
		"a policy that is none":       {"-P FORWARD"},
		"a name that goes on":         {"-P FORWARDS ACCEPT -c 0 0"},
		"another chain's rule":        {"-P FORWARD ACCEPT -c 0 0", "-A INPUT -c 0 0 -j DROP"},
		"rubbish":                     {"-P FORWARD ACCEPT -c 0 0", "-A FORWARD -c 0 0 -j DROP", "# Warning: something"},
		"a name that goes on, a rule": {"-P FORWARD ACCEPT -c 0 0", "-A FORWARDS -j DROP"},
	} {
		chain, err := list(imds.IPv6, func() ([]string, error) { return lines, nil })
		command, ok := errors.AsType[*CommandError](err)
		if !ok || command.Family != imds.IPv6 || command.Operation != OpList || command.Reason != ReasonOther || command.Err == nil {
			t.Errorf("%s: %v (%+v)", name, err, command)
		}
		if chain.Lines != nil {
			t.Errorf("%s: %+v", name, chain)
		}
	}
	broken := errors.New("broken")
	if _, err := list(imds.IPv4, func() ([]string, error) { return []string{"-P FORWARD ACCEPT -c 0 0"}, broken }); err != broken {
		t.Errorf("the command's own error has become %v", err)
	}
	chain, err := list(imds.IPv4, func() ([]string, error) { return []string{"-P FORWARD DROP -c 1 2"}, nil })
	if err != nil || len(chain.Lines) != 0 {
		t.Errorf("an empty chain: %+v, %v", chain, err)
	}
}

// Only lines that name the endpoint, and may stop its packets without being recognised as ours, are returned.
func TestNamedInTheListing(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	chain := chainOf(t, false,
		ours,
		"-d 169.254.169.254/32 -i eni0 -j DROP",
		"-d 169.254.169.254/32 -i eni0 -j DROP",
		"-d 169.254.169.254/32 -i eni+ -p tcp -j REJECT --reject-with tcp-reset",
		"-d 169.254.169.254/32 -i eni1",
		"-d 169.254.169.254/32 -j ACCEPT",
		"-d 169.254.169.254/32 -j LOG",
		"-d 10.0.0.1/32 -j DROP",
		"-m comment --comment \"not 169.254.169.254\" -j ACCEPT",
		"-d 169.254.169.254/32 -i odd -j ACCEPT",
		"-d 169.254.169.254/32 -i eni+ -m what -j DROP",
		ours,
	)
	chain.Lines[9].Odd = true
	const prefix = "-A FORWARD -d 169.254.169.254/32 "
	named := map[string]bool{
		prefix + "-i eni0 -j DROP #1":                                  true,
		prefix + "-i eni0 -j DROP #2":                                  true,
		prefix + "-i eni+ -p tcp -j REJECT --reject-with tcp-reset #1": true,
		prefix + "-i eni1 #1":                                          true,
		prefix + "-i odd -j ACCEPT #1":                                 true,
		prefix + "-i eni+ -m what -j DROP #1":                          true,
	}
	if got := chain.named(want, endpoint.String()); !maps.Equal(got, named) {
		t.Errorf("named %v, want %v", got, named)
	}
}

// What the kernel says about a line outweighs what iptables prints.
func TestMark(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	for _, c := range []struct {
		name            string
		kernel          netfilter.NFTRule
		before          bool // odd by what is printed
		exact, alike    bool
		odd, jump, mays bool
	}{
		{"plain", netfilter.NFTRule{}, false, true, false, false, false, false},
		{"odd", netfilter.NFTRule{Odd: true}, false, false, true, true, false, false},
		{"jump", netfilter.NFTRule{Jump: true}, false, false, true, false, true, true},
		{"unreadable", netfilter.NFTRule{}, true, true, true, true, false, false},
	} {
		chain := chainOf(t, false, "-j ACCEPT", ours)
		chain.Lines[1].Odd = c.before
		c.kernel.Position = 1
		chain.mark(kernelChain{NFTChain: netfilter.NFTChain{Length: 2, Top: []netfilter.NFTRule{{}, c.kernel}}})
		l := chain.Lines[1]
		if !chain.Native || l.Exact != c.exact || l.Odd != c.odd || l.Jump != c.jump || l.mayEndWalk(true) != c.mays {
			t.Errorf("%s: native %t, %+v", c.name, chain.Native, l)
		}
		if got := chain.lookalikes(want); got != c.alike {
			t.Errorf("%s: looks like ours and is none: %t", c.name, got)
		}
	}
	chain := chainOf(t, false, "-d 10.0.0.1/32 -j DROP")
	chain.Lines[0].Odd = true
	if chain.lookalikes(want) {
		t.Error("an odd line of another form is taken for one that looks like ours")
	}
}

// A listing from another moment shows our rule where the kernel has nothing that names the endpoint.
func TestShows(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	f, _ := kernelOf(t, want, "accept 0 accept")
	f.below("-d 169.254.169.254/32 -j ACCEPT", accept)
	k, err := readKernel(f.Kernel, endpoint, want)
	if err != nil {
		t.Fatal(err)
	}
	for chain, shown := range map[string]bool{
		"other, ours, other, other":     true,
		"other, ours, other, ours":      true, // it may be one that is not recognised
		"ours, other, other, other":     false,
		"other, ours, ours, other":      false,
		"other, other, other, other":    true,
		"like, ours, other, other":      true,
		"other, ours, other":            true,
		"other, ours, other, like":      true,
		"other, other, other, ours":     true,
		"other, other, other, _, ours":  false,
		"ours, ours, ours, ours, other": false,
	} {
		var lines []string
		for line := range strings.SplitSeq(chain, ", ") {
			switch line {
			case "ours":
				lines = append(lines, ours)
			case "like":
				lines = append(lines, ours+" --new-option")
			default:
				lines = append(lines, "-j ACCEPT")
			}
		}
		if got := k.shows(chainOf(t, true, lines...), want); got != shown {
			t.Errorf("%s: %t", chain, got)
		}
	}
}

// A comment may have line breaks in it, which the command's output does not quote.
func TestListJoinsLines(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		texts []string
		odd   []bool
	}{
		{"a comment of three lines", []string{
			`-A FORWARD -m comment --comment "a`, `-A FORWARD -c 1 2 -j DROP`, `b" -c 1 2 -j RETURN`, `-A FORWARD -c 3 4 -j DROP`,
		}, []string{`-A FORWARD -m comment --comment "a -A FORWARD -c 1 2 -j DROP b" -j RETURN`, "-A FORWARD -j DROP"}, []bool{false, false}},
		{"the last comment is never closed", []string{`-A FORWARD -c 3 4 -j DROP`, `-A FORWARD -m comment --comment "a`, `b -c 1 2 -j RETURN`},
			[]string{"-A FORWARD -j DROP", "-A FORWARD -m comment --comment \"a\nb -c 1 2 -j RETURN"}, []bool{false, true}},
		{"no counters", []string{`-A FORWARD -j DROP`, `-A FORWARD -c 3 4 -j DROP`}, []string{"-A FORWARD -j DROP", "-A FORWARD -j DROP"}, []bool{true, false}},
	} {
		chain, err := list(imds.IPv4, func() ([]string, error) { return append([]string{"-P FORWARD ACCEPT -c 0 0"}, c.lines...), nil })
		if err != nil || len(chain.Lines) != len(c.texts) {
			t.Errorf("%s: %+v, %v", c.name, chain, err)
			continue
		}
		for i, l := range chain.Lines {
			if l.Text != c.texts[i] || l.Odd != c.odd[i] || l.Odd && l.Exact {
				t.Errorf("%s: rule %d is %+v, want %q", c.name, i+1, l, c.texts[i])
			}
		}
	}
}

// Without a measure before or after, nothing can be said of the size; an insert that is not printed counts.
func TestListingWithoutAMeasure(t *testing.T) {
	same := Chain{Lines: []Line{{Text: "a"}}}
	for _, c := range []struct {
		before, after int
		inserted      bool
		hidden        int
	}{
		{unmeasured, 500, false, 2}, {unmeasured, 500, true, 3}, {unmeasured, 0, true, 3}, {0, unmeasured, true, 3},
		{500, unmeasured, false, 2}, {500, unmeasured, true, 3}, {unmeasured, unmeasured, false, 2}, {unmeasured, unmeasured, true, 3},
		{0, 1, false, 3}, {1, 0, true, 0}, {0, 0, true, 2}, {1, 1, true, 2},
	} {
		l := legacyListing{text: "a\n", extent: c.before, hidden: 2}
		if next := l.next(same, c.after, c.inserted); next.hidden != c.hidden || next.extent != c.after || next.text != "a\n" {
			t.Errorf("%d to %d, inserted %t: %+v, want %d hidden", c.before, c.after, c.inserted, next, c.hidden)
		}
	}
}

// Only the exact lines of wanted rules are counted, each with its copies.
func TestCountersInTheListing(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+", "vlan+", "cali+")
	const vlan = "-d 169.254.169.254/32 -i vlan+ -j DROP"
	chain := chainOf(t, false, ours, "-i eni+ -j DROP", ours+" --more", vlan, "-j ACCEPT", ours)
	for i := range chain.Lines {
		chain.Lines[i].Packets = 1 << i
	}
	chain.Lines[2].Rule = want[0]
	if got, want := chain.counters(want), (map[Rule]counted{want[0]: {1 + 32, 2}, want[1]: {8, 1}}); !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

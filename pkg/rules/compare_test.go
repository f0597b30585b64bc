package rules

import (
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// wanted is what a policy with these patterns wants in IPv4.
func wanted(t testing.TB, v policy.Verdict, texts ...string) []Rule {
	t.Helper()
	return Desired(imds.IPv4, policyOf(t, v, texts...))
}

func policyOf(t testing.TB, v policy.Verdict, texts ...string) policy.Policy {
	t.Helper()
	var list []ifpattern.Pattern
	for _, text := range texts {
		p, err := ifpattern.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return policy.New(list, v)
}

// chainOf makes a chain of rules written without counters, as in the tests' tables.
func chainOf(t testing.TB, native bool, rules ...string) Chain {
	t.Helper()
	c := Chain{Native: native}
	for _, r := range rules {
		text := "-A FORWARD " + r
		if at := strings.LastIndex(text, " -j "); at >= 0 {
			text = text[:at] + " -c 7 420" + text[at:]
		} else if at := strings.LastIndex(text, " -g "); at >= 0 {
			text = text[:at] + " -c 7 420" + text[at:]
		} else {
			text += " -c 7 420"
		}
		line, err := ParseLine(text)
		if err != nil {
			t.Fatal(err)
		}
		c.Lines = append(c.Lines, line)
	}
	return c
}

const ours = "-d 169.254.169.254/32 -i eni+ -j DROP"

func TestCompareOneRule(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	for _, c := range []struct {
		name  string
		state layer.State
		chain []string
	}{
		{"first", layer.Enforced, []string{ours, "-j ACCEPT"}},
		{"without prefix length", layer.Enforced, []string{"-d 169.254.169.254 -i eni+ -j DROP"}},
		{"empty chain", layer.Missing, nil},
		{"narrower by protocol", layer.Missing, []string{"-d 169.254.169.254/32 -i eni+ -p tcp -j DROP"}},
		{"narrower by source", layer.Missing, []string{"-s 10.0.0.0/8 -d 169.254.169.254/32 -i eni+ -j DROP"}},
		{"narrower by a match", layer.Missing, []string{"-d 169.254.169.254/32 -i eni+ -m comment --comment x -j DROP"}},
		{"negated", layer.Missing, []string{"-d 169.254.169.254/32 ! -i eni+ -j DROP"}},
		{"other verdict", layer.Missing, []string{"-d 169.254.169.254/32 -i eni+ -j ACCEPT"}},
		{"goto", layer.Missing, []string{"-d 169.254.169.254/32 -i eni+ -g DROP"}},
		{"other interface", layer.Missing, []string{"-d 169.254.169.254/32 -i eni -j DROP"}},

		{"accept all above", Shadowed, []string{"-j ACCEPT", ours}},
		{"accept established above", Shadowed, []string{"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", ours}},
		{"jump above", Shadowed, []string{"-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD", ours}},
		{"goto above", Shadowed, []string{"-g OTHER", ours}},
		{"return above", Shadowed, []string{"-i eni0 -j RETURN", ours}},
		{"a value like counters and a target", Shadowed, []string{"-m recent --rcheck --name x -c 0 0 -j LOG -j ACCEPT", ours}},
		{"a copy that leaves by OUTPUT", Shadowed, []string{"-j TEE --gateway 10.0.0.1", ours}},
		{"queue above", Shadowed, []string{"-j NFQUEUE --queue-num 0", ours}},
		{"accept to a network with the endpoint", Shadowed, []string{"-d 169.254.0.0/16 -j ACCEPT", ours}},
		{"accept to all but another address", Shadowed, []string{"! -d 10.0.0.1/32 -j ACCEPT", ours}},
		{"accept from a wider pattern", Shadowed, []string{"-i en+ -j ACCEPT", ours}},
		{"accept from all but one pod", Shadowed, []string{"! -i eni0 -j ACCEPT", ours}},
		{"accept with a netmask that is no prefix", Shadowed, []string{"-d 169.0.169.0/255.0.255.0 -j ACCEPT", ours}},
		{"a comment like an option", Shadowed, []string{"-m comment --comment -i -j ACCEPT", ours}},
		{"a quoted comment like a target", Shadowed, []string{`-m comment --comment "x -c 0 0 -j DROP" -j ACCEPT`, ours}},
		{"accept above a second copy only", Duplicate, []string{ours, "-j ACCEPT", ours}},
		{"accept above both copies", Shadowed, []string{"-j ACCEPT", ours, ours}},

		{"log above", Displaced, []string{`-j LOG --log-prefix "a b"`, ours}},
		{"drop above", Displaced, []string{"-d 10.0.0.1/32 -j DROP", ours}},
		{"reject above", Displaced, []string{"-j REJECT --reject-with icmp-port-unreachable", ours}},
		{"accept to elsewhere above", Displaced, []string{"-d 10.0.0.0/8 -j ACCEPT", ours}},
		{"accept to all but the endpoint above", Displaced, []string{"! -d 169.254.169.254/32 -j ACCEPT", ours}},
		{"accept from elsewhere above", Displaced, []string{"-i docker0 -j ACCEPT", ours}},
		{"accept from all but pods above", Displaced, []string{"! -i eni+ -j ACCEPT", ours}},
		{"count above", Displaced, []string{"-p tcp", ours}},
		{"duplicate", Duplicate, []string{ours, ours}},
	} {
		state, detail := Compare(want, chainOf(t, false, c.chain...))
		if state != c.state {
			t.Errorf("%s: %s (%s), want %s", c.name, state, detail, c.state)
		}
		if (detail == "") != (state == layer.Enforced) {
			t.Errorf("%s: state %s comes with detail %q", c.name, state, detail)
		}
	}
}

// A line without a target may be a native verdict map, and an odd line may match more than it says.
func TestCompareNative(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	if state, _ := Compare(want, chainOf(t, true, "-p tcp", ours)); state != Shadowed {
		t.Errorf("a line without target above: %s", state)
	}
	c := chainOf(t, true, "-d 10.0.0.1/32 -j ACCEPT", ours)
	if state, _ := Compare(want, c); state != Displaced {
		t.Errorf("accept to elsewhere above: %s", state)
	}
	c.Lines[0].Odd = true
	if state, _ := Compare(want, c); state != Shadowed {
		t.Errorf("odd accept to elsewhere above: %s", state)
	}
}

func TestCompareSeveralRules(t *testing.T) {
	const (
		vlan = "-d 169.254.169.254/32 -i vlan+ -j DROP"
		tcp  = "-d 169.254.169.254/32 -i eni+ -p tcp -j REJECT --reject-with tcp-reset"
		rest = "-d 169.254.169.254/32 -i eni+ -j REJECT --reject-with icmp-port-unreachable"
	)
	two := wanted(t, policy.Drop, "eni+", "vlan+")
	reject := wanted(t, policy.Reject, "eni+")
	for _, c := range []struct {
		name  string
		want  []Rule
		state layer.State
		chain []string
	}{
		{"both", two, layer.Enforced, []string{ours, vlan}},
		{"wrong order", two, Displaced, []string{vlan, ours}},
		{"one missing", two, layer.Missing, []string{ours}},
		{"one shadowed", two, Shadowed, []string{ours, "-i vlan+ -j ACCEPT", vlan}},
		{"harmless between", two, Displaced, []string{ours, "-i eni+ -j LOG", vlan}},
		{"accept for the first between", two, Displaced, []string{ours, "-i eni+ -j ACCEPT", vlan}},
		{"one twice", two, Duplicate, []string{ours, vlan, vlan}},
		{"reject", reject, layer.Enforced, []string{tcp, rest}},
		{"reject, numeric protocol", reject, layer.Enforced, []string{strings.Replace(tcp, "tcp", "6", 1), rest}},
		{"reject without reset", reject, layer.Missing, []string{rest}},
		{"reject in the wrong order", reject, Displaced, []string{rest, tcp}},
		{"drop instead of reject", reject, layer.Missing, []string{ours}},
	} {
		if state, detail := Compare(c.want, chainOf(t, false, c.chain...)); state != c.state {
			t.Errorf("%s: %s (%s), want %s", c.name, state, detail, c.state)
		}
	}
}

// Foreign rules of the same shape must never be counted among ours: Repair deletes what Copies counts.
func TestCopiesCountsOnlyOurs(t *testing.T) {
	want := wanted(t, policy.Drop, "eni+")
	copies := chainOf(t, false, ours, "-d 10.0.0.0/8 -i eth0 -j ACCEPT", "-d 169.254.169.254/32 -i docker0 -j DROP", ours).Copies(want)
	if len(copies) != 1 || copies[want[0]] != 2 {
		t.Errorf("copies: %v", copies)
	}
}

func TestParseLineRefuses(t *testing.T) {
	for _, text := range []string{
		"", "rubbish", "-P FORWARD ACCEPT", "-A INPUT -c 0 0 -j DROP", "-A FORWARD -j DROP", "-A FORWARD -c x y -j DROP",
		`-A FORWARD -m comment --comment "open -c 0 0 -j DROP`,
	} {
		if l, err := ParseLine(text); err == nil {
			t.Errorf("ParseLine(%q) = %+v", text, l)
		}
	}
}

// FuzzParseLine looks for foreign text that is taken for one of our rules, or for harmless, without being so.
func FuzzParseLine(f *testing.F) {
	for _, seed := range []string{
		"-A FORWARD -d 169.254.169.254/32 -i eni+ -c 1 2 -j DROP",
		"-A FORWARD ! -d 10.0.0.0/8 ! -i eni+ -m comment --comment \"a \\\" b\" -c 1 2 -j LOG --log-prefix \"x \"",
		"-A FORWARD -s 1.2.3.4 -o eth0 -p tcp -m tcp --dport 80 -c 1 2 -g CHAIN",
		"-A FORWARD -m comment --comment -c -c 0 0 -j ACCEPT",
	} {
		f.Add(seed)
	}
	want := wanted(f, policy.Drop, "eni+")
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLine(text)
		if err != nil {
			return
		}
		if l.Exact && l.Rule == want[0] {
			// Ours has these words, each once, whatever quotes and backslashes are around and in them.
			plain := strings.NewReplacer(`"`, "", `\`, "").Replace(withoutCounters(text))
			words := strings.Fields(plain)
			slices.Sort(words)
			ours := strings.Fields("-A -d -i -j 169.254.169.254/32 DROP FORWARD eni+")
			bare := strings.Fields("-A -d -i -j 169.254.169.254 DROP FORWARD eni+")
			if slices.Sort(ours); !slices.Equal(words, ours) {
				if slices.Sort(bare); !slices.Equal(words, bare) {
					t.Errorf("%q was taken for ours", text)
				}
			}
		}
		state, _ := Compare(want, Chain{Lines: []Line{l, {Rule: want[0], Exact: true}}})
		if state == Displaced && strings.HasSuffix(text, "-j ACCEPT") && !strings.Contains(text, "-d ") &&
			!strings.Contains(text, "-i ") {
			t.Errorf("%q was taken for harmless", text)
		}
	})
}

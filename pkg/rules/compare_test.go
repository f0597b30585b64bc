package rules

import (
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

func patterns(t testing.TB, texts ...string) (list []ifpattern.Pattern) {
	t.Helper()
	for _, text := range texts {
		p, err := ifpattern.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
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
	want := Desired(enforce.IPv4, patterns(t, "eni+"), Drop)
	for _, c := range []struct {
		name  string
		state enforce.State
		chain []string
	}{
		{"first", enforce.Enforced, []string{ours, "-j ACCEPT"}},
		{"without prefix length", enforce.Enforced, []string{"-d 169.254.169.254 -i eni+ -j DROP"}},
		{"empty chain", enforce.Missing, nil},
		{"narrower by protocol", enforce.Missing, []string{"-d 169.254.169.254/32 -i eni+ -p tcp -j DROP"}},
		{"narrower by source", enforce.Missing, []string{"-s 10.0.0.0/8 -d 169.254.169.254/32 -i eni+ -j DROP"}},
		{"narrower by a match", enforce.Missing, []string{"-d 169.254.169.254/32 -i eni+ -m comment --comment x -j DROP"}},
		{"negated", enforce.Missing, []string{"-d 169.254.169.254/32 ! -i eni+ -j DROP"}},
		{"other verdict", enforce.Missing, []string{"-d 169.254.169.254/32 -i eni+ -j ACCEPT"}},
		{"goto", enforce.Missing, []string{"-d 169.254.169.254/32 -i eni+ -g DROP"}},
		{"other interface", enforce.Missing, []string{"-d 169.254.169.254/32 -i eni -j DROP"}},

		{"accept all above", enforce.Shadowed, []string{"-j ACCEPT", ours}},
		{"accept established above", enforce.Shadowed, []string{"-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", ours}},
		{"jump above", enforce.Shadowed, []string{"-m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD", ours}},
		{"goto above", enforce.Shadowed, []string{"-g OTHER", ours}},
		{"return above", enforce.Shadowed, []string{"-i eni0 -j RETURN", ours}},
		{"queue above", enforce.Shadowed, []string{"-j NFQUEUE --queue-num 0", ours}},
		{"accept to a network with the endpoint", enforce.Shadowed, []string{"-d 169.254.0.0/16 -j ACCEPT", ours}},
		{"accept to all but another address", enforce.Shadowed, []string{"! -d 10.0.0.1/32 -j ACCEPT", ours}},
		{"accept from a wider pattern", enforce.Shadowed, []string{"-i en+ -j ACCEPT", ours}},
		{"accept from all but one pod", enforce.Shadowed, []string{"! -i eni0 -j ACCEPT", ours}},
		{"accept with a netmask that is no prefix", enforce.Shadowed, []string{"-d 169.0.169.0/255.0.255.0 -j ACCEPT", ours}},
		{"a comment like an option", enforce.Shadowed, []string{"-m comment --comment -i -j ACCEPT", ours}},
		{"a quoted comment like a target", enforce.Shadowed, []string{`-m comment --comment "x -c 0 0 -j DROP" -j ACCEPT`, ours}},
		{"accept above a second copy only", enforce.Duplicate, []string{ours, "-j ACCEPT", ours}},
		{"accept above both copies", enforce.Shadowed, []string{"-j ACCEPT", ours, ours}},

		{"log above", enforce.Displaced, []string{`-j LOG --log-prefix "a b"`, ours}},
		{"drop above", enforce.Displaced, []string{"-d 10.0.0.1/32 -j DROP", ours}},
		{"reject above", enforce.Displaced, []string{"-j REJECT --reject-with icmp-port-unreachable", ours}},
		{"accept to elsewhere above", enforce.Displaced, []string{"-d 10.0.0.0/8 -j ACCEPT", ours}},
		{"accept to all but the endpoint above", enforce.Displaced, []string{"! -d 169.254.169.254/32 -j ACCEPT", ours}},
		{"accept from elsewhere above", enforce.Displaced, []string{"-i docker0 -j ACCEPT", ours}},
		{"accept from all but pods above", enforce.Displaced, []string{"! -i eni+ -j ACCEPT", ours}},
		{"count above", enforce.Displaced, []string{"-p tcp", ours}},
		{"duplicate", enforce.Duplicate, []string{ours, ours}},
	} {
		state, detail := Compare(want, chainOf(t, false, c.chain...))
		if state != c.state {
			t.Errorf("%s: %s (%s), want %s", c.name, state, detail, c.state)
		}
		if (detail == "") != (state == enforce.Enforced) {
			t.Errorf("%s: state %s comes with detail %q", c.name, state, detail)
		}
	}
}

// A line without a target may be a native verdict map, and an odd line may match more than it says.
func TestCompareNative(t *testing.T) {
	want := Desired(enforce.IPv4, patterns(t, "eni+"), Drop)
	if state, _ := Compare(want, chainOf(t, true, "-p tcp", ours)); state != enforce.Shadowed {
		t.Errorf("a line without target above: %s", state)
	}
	c := chainOf(t, true, "-d 10.0.0.1/32 -j ACCEPT", ours)
	if state, _ := Compare(want, c); state != enforce.Displaced {
		t.Errorf("accept to elsewhere above: %s", state)
	}
	c.Lines[0].Odd = true
	if state, _ := Compare(want, c); state != enforce.Shadowed {
		t.Errorf("odd accept to elsewhere above: %s", state)
	}
}

func TestCompareSeveralRules(t *testing.T) {
	const (
		vlan = "-d 169.254.169.254/32 -i vlan+ -j DROP"
		tcp  = "-d 169.254.169.254/32 -i eni+ -p tcp -j REJECT --reject-with tcp-reset"
		rest = "-d 169.254.169.254/32 -i eni+ -j REJECT --reject-with icmp-port-unreachable"
	)
	two := Desired(enforce.IPv4, patterns(t, "eni+", "vlan+"), Drop)
	reject := Desired(enforce.IPv4, patterns(t, "eni+"), Reject)
	for _, c := range []struct {
		name  string
		want  []Rule
		state enforce.State
		chain []string
	}{
		{"both", two, enforce.Enforced, []string{ours, vlan}},
		{"wrong order", two, enforce.Displaced, []string{vlan, ours}},
		{"one missing", two, enforce.Missing, []string{ours}},
		{"one shadowed", two, enforce.Shadowed, []string{ours, "-i vlan+ -j ACCEPT", vlan}},
		{"harmless between", two, enforce.Displaced, []string{ours, "-i eni+ -j LOG", vlan}},
		{"accept for the first between", two, enforce.Displaced, []string{ours, "-i eni+ -j ACCEPT", vlan}},
		{"one twice", two, enforce.Duplicate, []string{ours, vlan, vlan}},
		{"reject", reject, enforce.Enforced, []string{tcp, rest}},
		{"reject, numeric protocol", reject, enforce.Enforced, []string{strings.Replace(tcp, "tcp", "6", 1), rest}},
		{"reject without reset", reject, enforce.Missing, []string{rest}},
		{"reject in the wrong order", reject, enforce.Displaced, []string{rest, tcp}},
		{"drop instead of reject", reject, enforce.Missing, []string{ours}},
	} {
		if state, detail := Compare(c.want, chainOf(t, false, c.chain...)); state != c.state {
			t.Errorf("%s: %s (%s), want %s", c.name, state, detail, c.state)
		}
	}
}

// Foreign rules of the same shape must never be counted among ours: Repair deletes what Copies counts.
func TestCopiesCountsOnlyOurs(t *testing.T) {
	want := Desired(enforce.IPv4, patterns(t, "eni+"), Drop)
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
	want := Desired(enforce.IPv4, patterns(f, "eni+"), Drop)
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseLine(text)
		if err != nil {
			return
		}
		if l.Exact && l.Rule == want[0] {
			// Ours says nothing but these words, in some order and with blanks of any kind.
			for _, word := range strings.Fields(strings.ReplaceAll(withoutCounters(text), `"`, "")) {
				if !strings.Contains("-A FORWARD -d 169.254.169.254/32 -i eni+ -j DROP \\", word) {
					t.Errorf("%q was taken for ours in spite of %q", text, word)
				}
			}
		}
		state, _ := Compare(want, Chain{Lines: []Line{l, {Rule: want[0], Exact: true}}})
		if state == enforce.Displaced && strings.HasSuffix(text, "-j ACCEPT") && !strings.Contains(text, "-d ") &&
			!strings.Contains(text, "-i ") {
			t.Errorf("%q was taken for harmless", text)
		}
	})
}

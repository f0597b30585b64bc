package rules

import (
	"net/netip"
	"slices"
	"testing"
)

// Each part of a line, and whether it is understood as a whole.
func TestParseLine(t *testing.T) {
	dest := netip.MustParsePrefix("169.254.169.254/32")
	for _, c := range []struct {
		text string // after -A FORWARD
		want Line   // without its text
	}{
		{"-c 7 420 -j DROP", Line{Rule: Rule{Target: "DROP"}, Exact: true, Packets: 7}},
		{"-c 18446744073709551615 0 -j DROP", Line{Rule: Rule{Target: "DROP"}, Exact: true, Packets: 18446744073709551615}},
		{"-c 010 0 -j DROP", Line{Rule: Rule{Target: "DROP"}, Exact: true, Packets: 10}},
		{"-c 7 420", Line{Packets: 7}},
		{"-c 7 420 -j", Line{Rule: Rule{Target: "?"}, Packets: 7}},
		{"-c 7 420 -g", Line{Rule: Rule{Target: "?"}, Packets: 7}},
		{"-c 7 420 -g OTHER", Line{Rule: Rule{Target: "OTHER"}, Packets: 7}},
		{"-c 7 420 -j LOG --log-level 7", Line{Rule: Rule{Target: "LOG"}, Packets: 7}},
		{"-c 7 420 -j REJECT --reject-with tcp-reset", Line{Rule: Rule{Target: "REJECT", RejectWith: "tcp-reset"}, Exact: true, Packets: 7}},
		{"-c 7 420 -j REJECT --reject-as tcp-reset", Line{Rule: Rule{Target: "REJECT"}, Packets: 7}},
		{"-c 7 420 -j REJECT --reject-with", Line{Rule: Rule{Target: "REJECT"}, Packets: 7}},
		{"-c 7 420 -j REJECT --reject-with tcp-reset --more", Line{Rule: Rule{Target: "REJECT"}, Packets: 7}},

		{"-d 169.254.169.254/32 -i eni+ -c 1 2 -j DROP", Line{Rule: Rule{Dest: dest, In: "eni+", Target: "DROP"}, Exact: true, Packets: 1}},
		{"-d 169.254.169.254 -c 1 2 -j DROP", Line{Rule: Rule{Dest: dest, Target: "DROP"}, Exact: true, Packets: 1}},
		{"-d 169.254.169.999 -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"-d 169.254.0.0/255.0.255.0 -i eni+ -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"! -d 169.254.169.254/32 -c 1 2 -j DROP", Line{Rule: Rule{Dest: dest, Target: "DROP"}, DestNot: true, Packets: 1}},
		{"! -i eni+ -c 1 2 -j DROP", Line{Rule: Rule{In: "eni+", Target: "DROP"}, InNot: true, Packets: 1}},
		{"-d -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"! -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"-p tcp -c 1 2 -j DROP", Line{Rule: Rule{TCP: true, Target: "DROP"}, Exact: true, Packets: 1}},
		{"-p 6 -c 1 2 -j DROP", Line{Rule: Rule{TCP: true, Target: "DROP"}, Exact: true, Packets: 1}},
		{"-p udp -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"! -p tcp -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"-p udp -i eni+ -c 1 2 -j DROP", Line{Rule: Rule{In: "eni+", Target: "DROP"}, Packets: 1}},
		{"-p udp -p tcp -c 1 2 -j DROP", Line{Rule: Rule{TCP: true, Target: "DROP"}, Packets: 1}},
		{"-s 10.0.0.0/8 -d 169.254.169.254/32 -i eni+ -c 1 2 -j DROP", Line{Rule: Rule{Dest: dest, In: "eni+", Target: "DROP"}, Packets: 1}},
		{"-i eni+ -o eth0 -c 1 2 -j DROP", Line{Rule: Rule{In: "eni+", Target: "DROP"}, Packets: 1}},
		{"-i eni+ -o eth0 -p tcp -c 1 2 -j DROP", Line{Rule: Rule{In: "eni+", TCP: true, Target: "DROP"}, Packets: 1}},
		{"-i eni+ -f -c 1 2 -j DROP", Line{Rule: Rule{In: "eni+", Target: "DROP"}, Packets: 1}},
		// After a match nothing is trusted to be an option.
		{"-m comment --comment -i -d 169.254.169.254/32 -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"-i eni+ -m comment --comment -i -c 1 2 -j DROP", Line{Rule: Rule{In: "eni+", Target: "DROP"}, Packets: 1}},

		// What looks like counters and is none.
		{"-m recent --name -c 5 6 -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{"-m comment --comment -c -c 1 2 -j DROP", Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
		{`-c 1 2 -j LOG --log-prefix "-c 5 6"`, Line{Rule: Rule{Target: "LOG"}, Packets: 1}},
		{`-m comment --comment "-c 5 6 -j ACCEPT" -c 1 2 -j DROP`, Line{Rule: Rule{Target: "DROP"}, Packets: 1}},
	} {
		got, err := ParseLine("-A FORWARD " + c.text)
		got.Text = ""
		if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v, want %+v", c.text, got, err, c.want)
		}
	}
	for _, text := range []string{
		"-A", "-A FORWARD", "-I FORWARD -c 1 2 -j DROP", "FORWARD -A -c 1 2 -j DROP", "-A FORWARD -c", "-A FORWARD -c 1", "-A FORWARD -c 1 -j",
		"-A FORWARD -c 18446744073709551616 2 -j DROP", "-A FORWARD -c 1 18446744073709551616 -j DROP", "-A FORWARD -c -1 2 -j DROP",
		"-A FORWARD -c 0x1 2 -j DROP", "-A FORWARD -c 1 b -j DROP", "-A FORWARD -c 1 2 -x DROP", "-A FORWARD -C 1 2 -j DROP",
		`-A FORWARD -c 1 2 -j LOG --log-prefix "open`,
	} {
		if l, err := ParseLine(text); err == nil {
			t.Errorf("ParseLine(%q) = %+v", text, l)
		}
	}
}

// The text of a line is the rule without its counters, whatever else looks like some.
func TestLineText(t *testing.T) {
	for text, want := range map[string]string{
		"-A FORWARD -c 1 2":                                      "-A FORWARD",
		"-A FORWARD -c 1 2 -j DROP":                              "-A FORWARD -j DROP",
		"-A  FORWARD -i  eni+ -c 1 2\t-j DROP":                   "-A FORWARD -i eni+ -j DROP",
		"-A FORWARD -m recent --name -c 5 6 -c 1 2 -j DROP":      "-A FORWARD -m recent --name -c 5 6 -j DROP",
		`-A FORWARD -m comment --comment "a b" -c 1 2 -j RETURN`: `-A FORWARD -m comment --comment "a b" -j RETURN`,
	} {
		if l, err := ParseLine(text); err != nil || l.Text != want {
			t.Errorf("%q: %q, %v, want %q", text, l.Text, err, want)
		}
	}
	if got := withoutCounters("-c 1 2"); got != "-c 1 2" {
		t.Errorf("what is no rule has become %q", got)
	}
}

// Tokens are split as iptables-restore does it.
func TestTokenize(t *testing.T) {
	for text, want := range map[string][]string{
		"":              nil,
		" \t ":          nil,
		"a":             {"a"},
		"a b":           {"a", "b"},
		"\ta \t b ":     {"a", "b"},
		`"a b" c`:       {"a b", "c"},
		`a"b c"d`:       {"ab cd"},
		`""`:            {""},
		`"" a ""`:       {"", "a", ""},
		`"a\"b"`:        {`a"b`},
		`"a\\" b`:       {`a\`, "b"},
		`"\n"`:          {"n"},
		`a\b`:           {`a\b`},
		`a\"b c"`:       {`a\b c`},
		"\"a\tb\" c":    {"a\tb", "c"},
		"\"a\nb\"\tc":   {"a\nb", "c"},
		`"a" "b"`:       {"a", "b"},
		`--log "-c 1 2`: nil, // and an error
		`"`:             nil,
		`"a\`:           nil,
		`"a\"`:          nil,
	} {
		got, err := tokenize(text)
		if !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
		if open := text == `--log "-c 1 2` || text == `"` || text == `"a\` || text == `"a\"`; (err != nil) != open {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Parsing one line of `iptables -t filter -S FORWARD -v`, which may be anybody's text: what is not understood is kept as such,
// so that Compare can treat it as dangerous.

package rules

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// Line is one rule of the chain, ours or not.
type Line struct {
	// Text is the rule in iptables-save form, without counters.
	Text string
	// Rule is the part of the line that our own rules consist of. Exact says that the line has no other part, so that it is one
	// of our rules if it equals one.
	Rule  Rule
	Exact bool
	// DestNot and InNot: the match is negated (`! -d`).
	DestNot, InNot bool
	// Odd: the matches can't be trusted, because iptables-nft prints some native nftables rules as something that they are not
	// (netfilter.NFTRule). Set by the reader of the chain, never by ParseLine.
	Odd bool
	// Jump: the target is a chain, whatever its name; nft allows one called DROP or LOG. Set by the reader of the chain, too.
	Jump bool
	// Packets is the rule's packet counter.
	Packets uint64
}

// ParseLine reads a rule of FORWARD with its counters. In iptables' own output (iptables/iptables.c and nft-shared.c,
// both print_rule and save_rule) the address, interface and protocol matches come first, then `-m …`, then the counters,
// then the target with its options. Only that order is trusted: a match may have an unquoted value that looks like an
// option (`--comment -i`).
func ParseLine(text string) (Line, error) {
	tokens, err := tokenize(text)
	if err != nil {
		return Line{}, fmt.Errorf("parsing rule %q: %w", text, err)
	}
	if len(tokens) < 2 || tokens[0] != "-A" || tokens[1] != chainName {
		return Line{}, fmt.Errorf("parsing rule %q: it does not start with -A %s", text, chainName)
	}
	matches, packets, target, err := splitAtCounters(tokens[2:])
	if err != nil {
		return Line{}, fmt.Errorf("parsing rule %q: %w", text, err)
	}
	l := Line{Packets: packets, Text: strings.Join(strings.Fields(withoutCounters(text)), " ")}
	l.Exact = l.parseMatches(matches)
	if !l.parseTarget(target) {
		l.Exact = false
	}
	return l, nil
}

// splitAtCounters splits a rule at `-c PACKETS BYTES`, which -v puts between the matches and the target. If there are several,
// it is the last one: the value of a match may look like one (`-m recent --name`), but that of a target is quoted.
func splitAtCounters(tokens []string) (matches []string, packets uint64, target []string, err error) {
	for i := len(tokens) - 3; i >= 0; i-- {
		if tokens[i] != "-c" {
			continue
		}
		p, errP := strconv.ParseUint(tokens[i+1], 10, 64)
		_, errB := strconv.ParseUint(tokens[i+2], 10, 64)
		rest := tokens[i+3:]
		if errP == nil && errB == nil && (len(rest) == 0 || rest[0] == "-j" || rest[0] == "-g") {
			return tokens[:i], p, rest, nil
		}
	}
	return nil, 0, nil, fmt.Errorf("it has no counters")
}

// parseMatches fills in the matches that it knows and reports whether there are no others.
func (l *Line) parseMatches(tokens []string) (exact bool) {
	exact = true
	for len(tokens) > 0 {
		not := tokens[0] == "!"
		if not {
			tokens = tokens[1:]
		}
		if len(tokens) < 2 {
			return false
		}
		option, value := tokens[0], tokens[1]
		tokens = tokens[2:]
		switch option {
		case "-d":
			dest, err := parsePrefix(value)
			if err != nil {
				return false
			}
			l.Rule.Dest, l.DestNot = dest, not
		case "-i":
			l.Rule.In, l.InNot = value, not
		case "-p":
			l.Rule.TCP = !not && (value == "tcp" || value == "6")
			exact = exact && l.Rule.TCP
		case "-s", "-o":
			exact = false
		default:
			return false
		}
	}
	return exact && !l.DestNot && !l.InNot
}

func (l *Line) parseTarget(tokens []string) (exact bool) {
	if len(tokens) == 0 {
		return false
	}
	if len(tokens) < 2 {
		l.Rule.Target = "?"
		return false
	}
	l.Rule.Target = tokens[1]
	switch {
	case tokens[0] != "-j":
		return false
	case len(tokens) == 2:
		return true
	case len(tokens) == 4 && tokens[2] == "--reject-with":
		l.Rule.RejectWith = tokens[3]
		return true
	}
	return false
}

// parsePrefix parses an address, with or without a prefix length. A netmask that is not a prefix (255.0.255.0, which iptables
// allows) is an error.
func parsePrefix(s string) (netip.Prefix, error) {
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		return a.Prefix(a.BitLen())
	}
	return netip.ParsePrefix(s)
}

// withoutCounters removes ` -c PACKETS BYTES` for showing the line to people.
func withoutCounters(text string) string {
	fields := strings.Fields(text)
	for i := len(fields) - 3; i > 0; i-- {
		if fields[i] == "-c" {
			return strings.Join(append(fields[:i:i], fields[i+3:]...), " ")
		}
	}
	return text
}

// tokenize splits a line as iptables-restore does (iptables/iptables-restore.c, add_param_to_argv): at blanks, with
// double quotes around values and a backslash before a quote or a backslash inside them.
func tokenize(s string) ([]string, error) {
	var tokens []string
	var token strings.Builder
	quoted, started := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\' && i+1 < len(s):
			i++
			token.WriteByte(s[i])
		case c == '"':
			quoted, started = !quoted, true
		case !quoted && (c == ' ' || c == '\t'):
			if started {
				tokens = append(tokens, token.String())
				token.Reset()
				started = false
			}
		default:
			token.WriteByte(c)
			started = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is not closed")
	}
	if started {
		tokens = append(tokens, token.String())
	}
	return tokens, nil
}

// Package ifpattern implements iptables' interface patterns: a name, or a prefix followed by a plus sign.
package ifpattern

import (
	"errors"
	"fmt"
	"strings"
)

// MaxLen is how many bytes a pattern may have: IFNAMSIZ (16, linux/if.h) less the terminating zero; iptables counts the
// plus sign too (libxtables/xtables.c, xtables_parse_interface).
const MaxLen = 15

// Pattern is a valid interface pattern as iptables takes it after -i: `eth0` is that interface, `eni+` every interface
// whose name starts with `eni`. Only Parse makes one, so a Pattern needs no further checks; the zero value is no pattern.
type Pattern struct{ text string }

// Parse checks s. The error says what is wrong and what to write instead.
func Parse(s string) (Pattern, error) {
	body := strings.TrimSuffix(s, "+")
	switch {
	case s == "":
		return Pattern{}, errors.New("the pattern is empty; write an interface name such as eni+ (a trailing + is a wildcard)")
	case body == "":
		return Pattern{}, errors.New("+ alone would match every interface, including the node's uplink; put a prefix before it, such as eni+")
	case len(s) > MaxLen:
		return Pattern{}, fmt.Errorf("%q has %d characters; Linux interface names have at most %d", s, len(s), MaxLen)
	case body == "." || body == ".." || body[0] == '-':
		return Pattern{}, fmt.Errorf("%q is not an interface name; write a name such as eni+", s)
	}
	for _, c := range []byte(body) {
		if !nameByte(c) {
			return Pattern{}, fmt.Errorf("%q contains %q; use letters, digits, '.', '_' and '-', and a + only at the end", s, c)
		}
	}
	return Pattern{s}, nil
}

// nameByte excludes what the kernel refuses (slash, colon, white space: net/core/dev.c, dev_valid_name), what iptables
// interprets (! and an inner +), what `ip link` prints after a name (@), and whatever no CNI uses.
func nameByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-'
}

// String returns the pattern as iptables prints it.
func (p Pattern) String() string { return p.text }

// Match reports whether a pattern, in iptables syntax but not necessarily valid here, matches an interface's name.
func Match(pattern, name string) bool { return Within(name, pattern) }

// Overlap reports whether some interface name is matched by both patterns.
func Overlap(a, b string) bool {
	prefixA, wildA := strings.CutSuffix(a, "+")
	prefixB, wildB := strings.CutSuffix(b, "+")
	return prefixA == prefixB || wildA && strings.HasPrefix(prefixB, prefixA) || wildB && strings.HasPrefix(prefixA, prefixB)
}

// Within reports whether pattern b matches every name that pattern a matches.
func Within(a, b string) bool {
	prefixA, wildA := strings.CutSuffix(a, "+")
	prefixB, wildB := strings.CutSuffix(b, "+")
	return wildB && strings.HasPrefix(prefixA, prefixB) || !wildA && prefixA == prefixB
}

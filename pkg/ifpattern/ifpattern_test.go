package ifpattern

import (
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, good := range []string{"eni+", "eth0", "br-+", "veth_1.2", "cni0", "vlan.eth.1", "fourteen-chars+"} {
		p, err := Parse(good)
		if err != nil || p.String() != good {
			t.Errorf("Parse(%q) = %q, %v", good, p, err)
		}
	}
	for bad, want := range map[string]string{
		"":                 "empty",
		"+":                "every interface",
		"sixteen-bytes-xx": "at most 15",
		"fifteen-chars-x+": "at most 15",
		"e+ni":             "only at the end",
		"eni++":            "only at the end",
		"!eni+":            `'!'`,
		"en i":             `' '`,
		"en/i":             `'/'`,
		"eni:1":            `':'`,
		"eni1@if2":         `'@'`,
		"-eni+":            "not an interface name",
		".":                "not an interface name",
		".+":               "not an interface name",
		"..":               "not an interface name",
		"eni+\n":           "only at the end",
	} {
		if _, err := Parse(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse(%q) = %v, want an error with %q", bad, err, want)
		}
	}
}

// Every byte, inside a name and at its end, but for the plus sign, which means something there.
func TestParseBytes(t *testing.T) {
	const names = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	for b := range 256 {
		c := string([]byte{byte(b)})
		for _, s := range []string{"x" + c + "x", "x" + c} {
			if s == "x+" {
				continue
			}
			if _, err := Parse(s); (err == nil) != strings.Contains(names, c) {
				t.Errorf("Parse(%q): %v", s, err)
			}
		}
	}
}

func TestRelations(t *testing.T) {
	for _, c := range []struct {
		a, b            string
		overlap, within bool
	}{
		{"eni+", "eni+", true, true},
		{"eni+", "en+", true, true},
		{"eni+", "enia+", true, false},
		{"eni+", "eni", true, false},
		{"eni+", "eni0", true, false},
		{"eni+", "eth+", false, false},
		{"eni+", "eth0", false, false},
		{"eni+", "+", true, true},
		{"eni0", "eni+", true, true},
		{"eni0", "eni0", true, true},
		{"eni0", "eni01", false, false},
		{"eni", "eni+", true, true},
	} {
		if got := Overlap(c.a, c.b); got != c.overlap {
			t.Errorf("Overlap(%q, %q) = %t", c.a, c.b, got)
		}
		if got := Overlap(c.b, c.a); got != c.overlap {
			t.Errorf("Overlap(%q, %q) = %t", c.b, c.a, got)
		}
		if got := Within(c.a, c.b); got != c.within {
			t.Errorf("Within(%q, %q) = %t", c.a, c.b, got)
		}
	}
	if !Match("eni+", "eni0123456789a") || Match("eni+", "eth0") || Match("eni0", "eni01") {
		t.Error("Match is wrong about a name")
	}
}

package ifwatch

import (
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

func TestUncovered(t *testing.T) {
	eni, err := ifpattern.Parse("eni+")
	if err != nil {
		t.Fatal(err)
	}
	interfaces := []Interface{{"eni0123456789a", "veth"}, {"vlan0123456789a", "veth"}, {"weird7", "veth"}}
	uncovered := Uncovered(interfaces, []ifpattern.Pattern{eni})
	if want := []Interface{{"vlan0123456789a", "veth"}, {"weird7", "veth"}}; !slices.Equal(uncovered, want) {
		t.Errorf("uncovered are %v, want %v", uncovered, want)
	}
	if interfaces[0].Name != "eni0123456789a" {
		t.Error("what was given is changed")
	}
}

const (
	add    = "add --interface "
	rename = "no --interface value can match it; rename the interface"
)

func TestFix(t *testing.T) {
	for name, want := range map[string]string{
		"eni0123456789a":  add + "eni+",
		"vlan0123456789a": add + "vlan+",
		"br-0123456789ab": add + "br-+",
		"cni0":            add + "cni+",
		"eni,b":           add + "eni+",
		"weird7":          add + "weird7",
		"flannel.1":       add + "flannel.1",
		"a+b":             rename,
		"x'y":             rename,
		"-x":              rename,
		"+":               rename,
		"a,b":             rename,
		"a b":             rename,
		"a$b":             rename,
		"ä":               rename,
	} {
		if got := Fix(name); got != want {
			t.Errorf("Fix(%q) = %q, want %q", name, got, want)
		}
	}
}

// Whatever an interface is called, the value that Fix gives is one that the configuration takes, and it covers it.
func FuzzFix(f *testing.F) {
	for _, name := range []string{"eni0123456789a", "vlan+x", "br-a'b", "a+b", "a+", "x'y", "-x", "+", "++", "a,b", "a b", "eth0", "fifteen-bytes-x",
		"cni", "@", "!eth0", "..", "a\xffb", "a\n"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		value, given := strings.CutPrefix(Fix(name), add)
		if !given {
			if _, err := ifpattern.Parse(name); err == nil {
				t.Errorf("Fix(%q) = %q, but the name itself is a value", name, Fix(name))
			}
			return
		}
		p, err := ifpattern.Parse(value)
		if err != nil || strings.Contains(value, ",") {
			t.Fatalf("Fix(%q) gives %q, which the configuration refuses: %v", name, value, err)
		}
		if !ifpattern.Match(value, name) || len(Uncovered([]Interface{{name, "veth"}}, []ifpattern.Pattern{p})) > 0 {
			t.Errorf("Fix(%q) gives %q, which doesn't cover it", name, value)
		}
	})
}

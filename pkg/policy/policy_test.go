package policy

import (
	"slices"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

func patterns(t *testing.T, texts ...string) (list []ifpattern.Pattern) {
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

func TestPolicyForTheLog(t *testing.T) {
	for want, p := range map[string]Policy{
		"eni+ drop":              New(patterns(t, "eni+"), Drop),
		"vlan+,eni+,eth1 reject": New(patterns(t, "vlan+", "eni+", "eth1"), Reject),
		" drop":                  New(nil, Drop),
		"eni+,eni0,en+ drop":     New(patterns(t, "eni+", "eni0", "eni+", "en+", "eni0"), Drop), // each once
	} {
		if got := p.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A policy can't be changed by whoever made it or reads it.
func TestPolicyIsImmutable(t *testing.T) {
	want := patterns(t, "eni+", "vlan+")
	given := slices.Clone(want)
	p := New(given, Reject)
	given[0] = want[1]
	p.Interfaces()[0] = want[1]
	if got := p.Interfaces(); !slices.Equal(got, want) || p.Verdict() != Reject {
		t.Errorf("it has become %s", p)
	}
}

func TestVerdicts(t *testing.T) {
	if !slices.Equal(Verdicts, []Verdict{Drop, Reject}) {
		t.Errorf("%v", Verdicts)
	}
}

package layer

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// What each state means for the packets, and whether there is something to mend.
func TestStates(t *testing.T) {
	own, safe := NewState("own", false), NewState("safe", true)
	for _, c := range []struct {
		state             State
		name              string
		protects, drifted bool
	}{
		{Enforced, "enforced", true, false},
		{Unsupported, "unsupported", false, false},
		{Missing, "missing", false, true},
		{Unknown, "unknown", false, true},
		{own, "own", false, true},
		{safe, "safe", true, true},
		{State{}, "", false, true},
	} {
		text, err := json.Marshal(c.state)
		if err != nil || string(text) != `"`+c.name+`"` || c.state.String() != c.name {
			t.Errorf("%s: in JSON %s, %v", c.state, text, err)
		}
		if c.state.Protects() != c.protects || c.state.Drifted() != c.drifted {
			t.Errorf("%s: protects %t, drifted %t", c.state, c.state.Protects(), c.state.Drifted())
		}
	}
	if got := States(own, safe); !slices.Equal(got, []State{Enforced, Unsupported, Missing, own, safe, Unknown}) {
		t.Errorf("the states are %v", got)
	}
}

func TestIDForAPerson(t *testing.T) {
	if got := (ID{Name: "iptables", Family: imds.IPv6}).String(); got != "iptables ipv6" {
		t.Errorf("%q", got)
	}
}

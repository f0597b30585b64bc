package node

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func TestJudge(t *testing.T) {
	type layers = map[imds.Family]layer.Reading
	enforced := layer.Reading{State: layer.Enforced}
	unreadable := layer.Reading{State: layer.Unknown, Detail: "iptables hangs", Err: errors.New("iptables hangs")}
	tests := []struct {
		name   string
		layers layers
		Coverage
		status  corev1.ConditionStatus
		reason  string
		message string // a part of it
	}{
		{"all right", layers{imds.IPv4: enforced, imds.IPv6: enforced}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "iptables ipv4 and iptables ipv6"},
		{"no IPv6", layers{imds.IPv4: enforced, imds.IPv6: {State: layer.Unsupported}}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "the rules for iptables ipv4 were"},
		{"displaced still stops packets", layers{imds.IPv4: {State: rules.Displaced}, imds.IPv6: enforced}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "ipv4"},
		{"shadowed", layers{imds.IPv4: {State: rules.Shadowed, Detail: "by this"}, imds.IPv6: enforced}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "ipv4 rules are shadowed: by this"},
		{"wrong beats unknown", layers{imds.IPv4: unreadable, imds.IPv6: {State: layer.Missing}}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "ipv6 rules are missing"},
		{"unreadable", layers{imds.IPv4: unreadable, imds.IPv6: enforced}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "iptables hangs"},
		{"nobody has looked", layers{imds.IPv4: {State: layer.Unknown, Detail: "nobody has looked yet"}}, Coverage{},
			corev1.ConditionUnknown, ReasonNotVerified, "nobody has looked yet"},
		{"nothing is supported", layers{imds.IPv4: {State: layer.Unsupported}}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "No address family"},
		{"uncovered", layers{imds.IPv4: enforced}, Coverage{Uncovered: []string{"a", "b", "c", "d", "e", "f", "g"}},
			corev1.ConditionFalse, ReasonNotCovered, "a, b, c, d, e and 2 more"},
		{"one uncovered", layers{imds.IPv4: enforced}, Coverage{Uncovered: []string{"a"}},
			corev1.ConditionFalse, ReasonNotCovered, "covers them: a"},
		{"interfaces not listed", layers{imds.IPv4: enforced}, Coverage{Err: errors.New("not listed yet")},
			corev1.ConditionUnknown, ReasonNotVerified, "not listed yet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := guard.Status{Protected: true}
			supported := false
			for _, f := range imds.Families {
				if r, there := tt.layers[f]; there {
					s.Layers = append(s.Layers, guard.LayerStatus{ID: layer.ID{Name: "iptables", Family: f}, Reading: r})
					s.Protected = s.Protected && r.State.Protects()
					supported = supported || r.State != layer.Unsupported
				}
			}
			s.Protected = s.Protected && supported
			c := Judge(s, tt.Coverage)
			if c.Status != tt.status || c.Reason != tt.reason || !strings.Contains(c.Message, tt.message) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// A condition's message names a few interfaces and counts the rest.
func TestFirst(t *testing.T) {
	for names, want := range map[string]string{
		"a": "a", "a b c d e": "a, b, c, d, e", "a b c d e f": "a, b, c, d, e and 1 more",
	} {
		if got := first(strings.Fields(names)); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

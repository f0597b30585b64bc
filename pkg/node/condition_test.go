package node

import (
	"errors"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/guard"
)

func TestJudge(t *testing.T) {
	type layers = map[enforce.Family]enforce.Reading
	enforced := enforce.Reading{State: enforce.Enforced}
	unreadable := enforce.Reading{State: enforce.Unknown, Detail: "iptables hangs", Err: errors.New("iptables hangs")}
	tests := []struct {
		name   string
		layers layers
		Coverage
		status  corev1.ConditionStatus
		reason  string
		message string // a part of it
	}{
		{"all right", layers{enforce.IPv4: enforced, enforce.IPv6: enforced}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "ipv4 and ipv6"},
		{"no IPv6", layers{enforce.IPv4: enforced, enforce.IPv6: {State: enforce.Unsupported}}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "the rules for ipv4 were"},
		{"displaced still stops packets", layers{enforce.IPv4: {State: enforce.Displaced}, enforce.IPv6: enforced}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "ipv4"},
		{"shadowed", layers{enforce.IPv4: {State: enforce.Shadowed, Detail: "by this"}, enforce.IPv6: enforced}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "ipv4 rules are shadowed: by this"},
		{"wrong beats unknown", layers{enforce.IPv4: unreadable, enforce.IPv6: {State: enforce.Missing}}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "ipv6 rules are missing"},
		{"unreadable", layers{enforce.IPv4: unreadable, enforce.IPv6: enforced}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "iptables hangs"},
		{"nobody has looked", layers{enforce.IPv4: {State: enforce.Unknown, Detail: "nobody has looked yet"}}, Coverage{},
			corev1.ConditionUnknown, ReasonNotVerified, "nobody has looked yet"},
		{"nothing is supported", layers{enforce.IPv4: {State: enforce.Unsupported}}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "No address family"},
		{"uncovered", layers{enforce.IPv4: enforced}, Coverage{Uncovered: []string{"a", "b", "c", "d", "e", "f", "g"}},
			corev1.ConditionFalse, ReasonNotCovered, "a, b, c, d, e and 2 more"},
		{"interfaces not listed", layers{enforce.IPv4: enforced}, Coverage{Err: errors.New("not listed yet")},
			corev1.ConditionUnknown, ReasonNotVerified, "not listed yet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := guard.Status{Protected: true}
			supported := false
			for _, f := range enforce.Families {
				if r, there := tt.layers[f]; there {
					s.Layers = append(s.Layers, guard.LayerStatus{Family: f, Reading: r})
					s.Protected = s.Protected && r.State.Protects()
					supported = supported || r.State != enforce.Unsupported
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

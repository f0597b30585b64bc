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
	type layers = map[layer.ID]layer.Reading
	v4, v6 := layer.ID{Name: "iptables", Family: imds.IPv4}, layer.ID{Name: "iptables", Family: imds.IPv6}
	route4, route6 := layer.ID{Name: "route", Family: imds.IPv4}, layer.ID{Name: "route", Family: imds.IPv6}
	enforced, missing := layer.Reading{State: layer.Enforced}, layer.Reading{State: layer.Missing}
	routed := layer.Reading{State: layer.Enforced, AnyInterface: true}
	unreadable := layer.Reading{State: layer.Unknown, Detail: "iptables hangs", Err: errors.New("iptables hangs")}
	tests := []struct {
		name   string
		layers layers
		Coverage
		status  corev1.ConditionStatus
		reason  string
		message string // a part of it
	}{
		{"all right", layers{v4: enforced, v6: enforced}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "iptables ipv4 and iptables ipv6"},
		{"no IPv6", layers{v4: enforced, v6: {State: layer.Unsupported, NoPath: true}}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "the rules for iptables ipv4 were"},
		{"displaced still stops packets", layers{v4: {State: rules.Displaced}, v6: enforced}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "ipv4"},
		{"shadowed", layers{v4: {State: rules.Shadowed, Detail: "by this"}, v6: enforced}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "ipv4 rules are shadowed: by this"},
		{"wrong beats unknown", layers{v4: unreadable, v6: {State: layer.Missing}}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "ipv6 rules are missing"},
		{"unreadable", layers{v4: unreadable, v6: enforced}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "iptables hangs"},
		{"nobody has looked", layers{v4: {State: layer.Unknown, Detail: "not checked yet"}}, Coverage{},
			corev1.ConditionUnknown, ReasonNotVerified, "not checked yet"},
		{"nothing is supported", layers{v4: {State: layer.Unsupported, NoPath: true}}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "No address family"},
		{"uncovered", layers{v4: enforced, v6: enforced}, Coverage{Uncovered: []string{"a", "b", "c", "d", "e", "f", "g"}},
			corev1.ConditionFalse, ReasonNotCovered, "a, b, c, d, e and 2 more"},
		{"one uncovered", layers{v4: enforced, v6: enforced}, Coverage{Uncovered: []string{"a"}},
			corev1.ConditionFalse, ReasonNotCovered, "covers them: a"},
		{"interfaces not listed", layers{v4: enforced, v6: enforced}, Coverage{Err: errors.New("not listed yet")},
			corev1.ConditionUnknown, ReasonNotVerified, "not listed yet"},

		{"both layers", layers{v4: enforced, v6: enforced, route4: routed, route6: routed}, Coverage{Err: errors.New("not listed yet")},
			corev1.ConditionTrue, ReasonVerified, "iptables ipv4 and iptables ipv6 and route ipv4 and route ipv6"},
		{"one layer behind the other", layers{v4: missing, v6: enforced, route4: routed, route6: routed}, Coverage{},
			corev1.ConditionTrue, ReasonDegraded, "by iptables ipv6 and route ipv4 and route ipv6; but iptables ipv4 rules are missing"},
		{"one layer can't be read", layers{v4: unreadable, v6: enforced, route4: routed, route6: routed}, Coverage{},
			corev1.ConditionTrue, ReasonDegraded, "but iptables ipv4 rules are unknown: iptables hangs"},
		{"one layer can't be had", layers{v4: {State: layer.Unsupported}, v6: {State: layer.Unsupported}, route4: routed, route6: routed}, Coverage{},
			corev1.ConditionTrue, ReasonVerified, "the rules for route ipv4 and route ipv6 were"},
		{"neither", layers{v4: missing, v6: enforced, route4: missing, route6: routed}, Coverage{},
			corev1.ConditionFalse, ReasonNotInForce, "iptables ipv4 rules are missing; route ipv4 rules are missing"},
		{"nobody can tell", layers{v4: missing, v6: enforced, route4: unreadable, route6: routed}, Coverage{},
			corev1.ConditionUnknown, ReasonUnreadable, "route ipv4 rules are unknown"},
		{"covered again by the other layer", layers{v4: enforced, v6: enforced, route4: routed, route6: routed},
			Coverage{Uncovered: []string{"a"}}, corev1.ConditionTrue, ReasonVerified, "route ipv4"},
		{"uncovered behind the other layer's loss", layers{v4: enforced, v6: enforced, route4: missing, route6: routed},
			Coverage{Uncovered: []string{"a"}}, corev1.ConditionFalse, ReasonNotCovered, "covers them: a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var read []guard.LayerStatus
			for _, name := range []string{"iptables", "route"} {
				for _, f := range imds.Families {
					if r, there := tt.layers[layer.ID{Name: name, Family: f}]; there {
						read = append(read, guard.LayerStatus{ID: layer.ID{Name: name, Family: f}, Reading: r})
					}
				}
			}
			s := guard.Judge(read, guard.Evidence{})
			c := Judge(s, tt.Coverage)
			if c.Status != tt.status || c.Reason != tt.reason || !strings.Contains(c.Message, tt.message) {
				t.Errorf("%+v", c)
			}
		})
	}
}

// The evidence beside the layers decides, and appears in the message.
func TestJudgeByEvidence(t *testing.T) {
	in, socketsOut := layer.Reading{State: layer.Enforced, AnyInterface: true}, layer.Reading{State: layer.Missing, SocketsOnly: true}
	sockets := layer.Reading{State: layer.Enforced, SocketsOnly: true}
	past := guard.Evidence{Bypasses: []string{"macvlan: interface mv0"}}
	for _, tt := range []struct {
		evidence guard.Evidence
		sockets  layer.Reading
		status   corev1.ConditionStatus
		reason   string
		message  string
	}{
		{past, sockets, corev1.ConditionTrue, ReasonVerified, "But pods' packets bypass FORWARD (macvlan: interface mv0); there,"},
		{past, socketsOut, corev1.ConditionFalse, ReasonNotInForce, "cgroup ipv4 rules are missing; cgroup ipv6 rules are missing; pods' packets bypass"},
		{past, layer.Reading{State: layer.Unknown, SocketsOnly: true, Err: errors.New("no")}, corev1.ConditionUnknown, ReasonUnreadable, "cgroup ipv4 rules are unknown"},
		{guard.Evidence{Unsearched: errors.New("no list")}, socketsOut, corev1.ConditionUnknown, ReasonNotVerified, "are stopped, but it is not known whether pods' packets bypass FORWARD: no list"},
		{guard.Evidence{Answered: "by FORWARD"}, sockets, corev1.ConditionFalse, ReasonAnswered, "metadata service: a probe was let through: by FORWARD"},
		{guard.Evidence{Auditing: true}, layer.Reading{State: layer.Auditing, SocketsOnly: true}, corev1.ConditionFalse, ReasonAuditing, "imds-guard runs in audit mode: it blocks nothing and counts who asks"},
		{guard.Evidence{Auditing: true}, socketsOut, corev1.ConditionFalse, ReasonAuditing, "report`); cgroup ipv4 rules are missing; cgroup ipv6"},
		{guard.Evidence{NotProbed: errors.New("no pattern")}, sockets, corev1.ConditionTrue, ReasonNotProbed, "; but no probe could be sent: no pattern"},
	} {
		var read []guard.LayerStatus
		for _, f := range imds.Families {
			read = append(read, guard.LayerStatus{ID: layer.ID{Name: "route", Family: f}, Reading: in},
				guard.LayerStatus{ID: layer.ID{Name: "cgroup", Family: f}, Reading: tt.sockets})
		}
		c := Judge(guard.Judge(read, tt.evidence), Coverage{})
		if c.Status != tt.status || c.Reason != tt.reason || !strings.Contains(c.Message, tt.message) {
			t.Errorf("%+v: %+v", tt.evidence, c)
		}
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

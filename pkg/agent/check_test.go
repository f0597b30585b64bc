package agent

import (
	"slices"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// The text output, line by line.
func TestCheckForAPerson(t *testing.T) {
	for _, c := range []struct {
		check Check
		want  string
	}{
		{Check{Protected: true, Degraded: true, Backend: rules.NFT, Interfaces: CheckLinks{PodSide: 2}, Families: []CheckFamily{
			{Family: imds.IPv4, Layer: "iptables", State: layer.Enforced, Rules: []string{"a rule", "another"}},
			{Family: imds.IPv6, Layer: "route", State: layer.Unsupported, Detail: "no IPv6 here"},
		}}, `protected      true
degraded       true
backend        nft
iptables ipv4  enforced
               a rule
               another
route ipv6     unsupported: no IPv6 here
interfaces     2 pod-side, 0 not covered
`},
		{Check{Backend: rules.Legacy, Interfaces: CheckLinks{PodSide: 3, Uncovered: []string{"cali1", "a,b"}, Tunnels: []string{"flannel.1"}}},
			`protected      false
backend        legacy
interfaces     3 pod-side, 2 not covered
               cali1: ` + ifwatch.Fix("cali1") + `
               a,b: ` + ifwatch.Fix("a,b") + `
               flannel.1: packets that a pod sends to the node inside this tunnel are forwarded, and no rule covers them; ` + ifwatch.Fix("flannel.1") + `
`},
		{Check{Interfaces: CheckLinks{Error: "no list"}}, `protected      false
interfaces     0 pod-side, 0 not covered
               no list
`},
		{Check{}, `protected      false
interfaces     0 pod-side, 0 not covered
               no pod interface was found: if pods run here, it is not known whether a rule covers them; test from inside one
`},
	} {
		if got := c.check.String(); got != c.want {
			t.Errorf("it says\n%swant\n%s", got, c.want)
		}
	}
}

// In JSON, empty lists are lists and not null.
func TestNamesOfInterfaces(t *testing.T) {
	if got := names(nil); got == nil || len(got) != 0 {
		t.Errorf("%#v", got)
	}
	if got := names([]ifwatch.Interface{{Name: "a"}, {Name: "b"}}); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%q", got)
	}
}

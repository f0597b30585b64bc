package imds

import (
	"slices"
	"testing"
)

// The addresses are AWS's, and nobody may change them by accident.
func TestEndpoints(t *testing.T) {
	if !slices.Equal(Families, []Family{"ipv4", "ipv6"}) {
		t.Errorf("families %q", Families)
	}
	for f, want := range map[Family]string{IPv4: "169.254.169.254/32", IPv6: "fd00:ec2::254/128"} {
		if p := f.Endpoint(); p.String() != want || !p.IsSingleIP() {
			t.Errorf("%s: %s, want %s", f, p, want)
		}
	}
}

package main

import (
	"strings"
	"testing"
)

func TestDebianSources(t *testing.T) {
	const (
		debian   = "http://a.example/debian"
		security = "http://a.example/debian-security"
		docker   = "https://docker.example/linux/debian"
	)
	for name, test := range map[string]struct {
		here  []string // what apt would fetch
		want  []string // mirrors of the suite, of its updates, and of its security fixes
		error []string
	}{
		"one mirror": {
			here: []string{debian + "/dists/trixie", debian + "/dists/trixie-updates", security + "/dists/trixie-security"},
			want: []string{debian, debian, security},
		},
		"a third party after it": {
			here: []string{debian + "/dists/trixie", debian + "/dists/trixie-updates", security + "/dists/trixie-security", docker + "/dists/trixie"},
			want: []string{debian, debian, security},
		},
		"a third party before it": {
			here: []string{docker + "/dists/trixie", debian + "/dists/trixie", debian + "/dists/trixie-updates", security + "/dists/trixie-security"},
			want: []string{debian, debian, security},
		},
		"no updates": {
			here: []string{debian + "/dists/trixie", security + "/dists/trixie-security"},
			want: []string{debian, debian, security},
		},
		"no updates, and a third party": {
			here:  []string{debian + "/dists/trixie", docker + "/dists/trixie", security + "/dists/trixie-security"},
			error: []string{"several sources for trixie", debian, docker, "--sources"},
		},
		"two mirrors": {
			here: []string{debian + "/dists/trixie", debian + "/dists/trixie-updates", "http://b.example/debian/dists/trixie",
				"http://b.example/debian/dists/trixie-updates", security + "/dists/trixie-security"},
			error: []string{"several sources for trixie", debian, "http://b.example/debian", "--sources"},
		},
		"nothing": {
			error: []string{"no source for trixie", "--sources"},
		},
		"no security fixes": {
			here:  []string{debian + "/dists/trixie", debian + "/dists/trixie-updates"},
			error: []string{"no source for trixie-security", "--sources"},
		},
		"two mirrors of security fixes": {
			here: []string{debian + "/dists/trixie", debian + "/dists/trixie-updates", security + "/dists/trixie-security",
				"http://b.example/security/dists/trixie-security"},
			error: []string{"several sources for trixie-security", security, "http://b.example/security", "--sources"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var uris strings.Builder
			for _, suite := range test.here {
				uris.WriteString("'" + suite + "/InRelease' x_InRelease 0 \n'" + suite + "/main/binary-amd64/Packages.xz' x_Packages 0 \n")
			}
			// A source without suites.
			uris.WriteString("'http://flat.example/InRelease' flat.example_InRelease 0 \n")
			list, err := debianSources(uris.String(), "trixie")
			if (err != nil) != (test.error != nil) {
				t.Fatalf("the error is %v", err)
			}
			for _, want := range test.error {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no word of %q in %v", want, err)
				}
			}
			var want strings.Builder
			for i, mirror := range test.want {
				want.WriteString("deb [signed-by=" + keyring + "] " + mirror + " bookworm" + []string{"", "-updates", "-security"}[i] + " main\n")
			}
			if list != want.String() {
				t.Errorf("it is\n%s, not\n%s", list, want.String())
			}
		})
	}
}

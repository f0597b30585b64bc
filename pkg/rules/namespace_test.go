package rules

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// inNamespace plays in a network namespace of its own, in which there is nothing yet.
func inNamespace(t *testing.T, play func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, so that the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			play()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
}

// IPv6 is unsupported where the kernel has no filter for it and forwards none, and nowhere else. (An interface's own setting lets
// nothing through if that of all is 0: net/ipv6/ip6_output.c, ip6_forward, and seen.)
func TestUnsupported(t *testing.T) {
	inNamespace(t, func() {
		forwarding := func(where, value string) {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+where+"/forwarding", []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []struct {
			all, lo string
			family  imds.Family
			err     error
			state   layer.State
		}{
			{"0", "0", imds.IPv6, unix.EAFNOSUPPORT, layer.Unsupported},
			{"0", "0", imds.IPv4, unix.EAFNOSUPPORT, layer.Unknown},
			{"0", "0", imds.IPv6, unix.EPERM, layer.Unknown},
			{"1", "1", imds.IPv6, unix.EAFNOSUPPORT, layer.Unknown},
			{"0", "1", imds.IPv6, unix.EAFNOSUPPORT, layer.Unsupported},
			{"0", "0", imds.IPv6, nil, layer.Missing},
			{"1", "1", imds.IPv6, nil, layer.Missing},
		} {
			forwarding("all", c.all)
			forwarding("lo", c.lo)
			for _, b := range backends {
				f := &flawed{fakeForward: newFake(b), unloaded: c.err == nil}
				f.reading = func(int, *netfilter.NFTChain) error { return c.err }
				f.listErr = c.err
				table := &Table{family: c.family, forward: f}
				got := table.Look(policyOf(t, policy.Drop, "eni+"), func(string) {})
				if got.State != c.state || got.Detail == "" || (got.Err != nil) != (c.state == layer.Unknown) {
					t.Errorf("%s, %s, %v, forwarding %s and %s: %s (%s), %v", b, c.family, c.err, c.all, c.lo, got.State, got.Detail, got.Err)
				}
			}
		}
	})
}

// commandsIn makes these commands, of which nobody expects anything, the only ones in PATH.
func commandsIn(t *testing.T, backends ...Backend) {
	t.Helper()
	dir := t.TempDir()
	for _, b := range backends {
		if err := os.WriteFile(filepath.Join(dir, "iptables-"+string(b)), []byte("#!/bin/false\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir)
}

// The backend is the one that is wished for, or installed, or hinted at, or was used last.
func TestSelector(t *testing.T) {
	both := []Backend{NFT, Legacy}
	hint := func(chain string) func(*netfilter.NFT) error {
		return func(n *netfilter.NFT) error { return n.MakeTable(imds.IPv6, "mangle", chain, nil) }
	}
	nothing := func(*netfilter.NFT) error { return nil }
	for _, c := range []struct {
		name      string
		installed []Backend
		wish      Backend
		recorded  Backend
		prepare   func(*netfilter.NFT) error
		want      Backend // empty for an error
		words     string
	}{
		{"nothing is installed", nil, Auto, "", nothing, "", "none of iptables-nft, iptables-legacy is in PATH"},
		{"the one that is wished for is not installed", []Backend{NFT}, Legacy, "", nothing, "", "none of iptables-legacy is in PATH"},
		{"nor the other", []Backend{Legacy}, NFT, "", nothing, "", "none of iptables-nft is in PATH"},
		{"a wish", both, Legacy, NFT, hint("KUBE-IPTABLES-HINT"), Legacy, ""},
		{"the other wish", both, NFT, Legacy, nothing, NFT, ""},
		{"one is installed", []Backend{NFT}, Auto, Legacy, nothing, NFT, ""},
		{"the other is installed", []Backend{Legacy}, Auto, NFT, hint("KUBE-IPTABLES-HINT"), Legacy, ""},
		{"no sign", both, Auto, "", nothing, NFT, ""},
		{"what was used last", both, Auto, Legacy, nothing, Legacy, ""},
		{"a record that is none", both, Auto, "iptables", nothing, NFT, ""},
		{"the kubelet's hint", both, Auto, Legacy, hint("KUBE-IPTABLES-HINT"), NFT, ""},
		{"an older kubelet's", both, Auto, Legacy, hint("KUBE-KUBELET-CANARY"), NFT, ""},
		{"another chain", both, Auto, Legacy, hint("KUBE-SERVICES"), Legacy, ""},
		{"a filter table in nft alone", both, Auto, "", func(n *netfilter.NFT) error {
			return n.MakeTable(imds.IPv4, tableName, chainName, nil)
		}, NFT, ""},
	} {
		commandsIn(t, c.installed...)
		inNamespace(t, func() {
			var n netfilter.NFT
			defer n.Close()
			if err := c.prepare(&n); err != nil {
				t.Fatal(err)
			}
			s, err := NewSelector(c.wish, imds.Families, c.recorded)
			if (err == nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.words) {
				t.Errorf("%s: %v", c.name, err)
			}
			if err == nil && (s.Current() != c.want || s.Choose() != c.want) {
				t.Errorf("%s: %s, then %s", c.name, s.Current(), s.Choose())
			}
		})
	}
}

// A change is told once, to whoever wants to hear it, and the other backend's versions are forgotten.
func TestSelectorChanges(t *testing.T) {
	commandsIn(t, NFT, Legacy)
	inNamespace(t, func() {
		s, err := NewSelector(Auto, imds.Families, Legacy)
		if err != nil {
			t.Fatal(err)
		}
		var changes []Backend
		s.Changed = func(from, to Backend) { changes = append(changes, from, to) }
		s.versions = map[imds.Family]string{imds.IPv4: "1.8.9", imds.IPv6: "1.8.9"}
		if s.Choose() != Legacy || len(changes) != 0 || s.Version() != "1.8.9" {
			t.Errorf("nothing has changed: %s, %q, version %q", s.Current(), changes, s.Version())
		}
		s.versions[imds.IPv6] = "1.8.10"
		if got := s.Version(); got != "1.8.9,1.8.10" {
			t.Errorf("two versions: %q", got)
		}
		var n netfilter.NFT
		defer n.Close()
		if err := n.MakeTable(imds.IPv4, "mangle", "KUBE-IPTABLES-HINT", nil); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got := s.Choose(); got != NFT {
				t.Errorf("with a hint: %s", got)
			}
		}
		if !slices.Equal(changes, []Backend{Legacy, NFT}) || s.Version() != "" {
			t.Errorf("changes %q, version %q", changes, s.Version())
		}
		if err := n.DeleteTable(imds.IPv4, "mangle"); err != nil {
			t.Fatal(err)
		}
		if s.Changed = nil; s.Choose() != NFT {
			t.Errorf("without the hint: %s", s.Current())
		}
	})
}

// Cleanup deletes our own table, tells of what it removed, and finds nothing on a node where nobody has been.
func TestCleanupOfOurOwnTable(t *testing.T) {
	patterns := policyOf(t, policy.Drop, "eni+", "vlan+", "eni+").Interfaces()
	inNamespace(t, func() {
		if removed, err := Cleanup(imds.Families, patterns); err != nil || removed != nil {
			t.Errorf("on an empty node: %+v, %v", removed, err)
		}
		var n netfilter.NFT
		defer n.Close()
		dest := imds.IPv6.Endpoint().Addr()
		top := []netfilter.NFTRule{
			netfilter.PlainRule(imds.IPv6, "eni+", dest, false, "DROP", ""), netfilter.PlainRule(imds.IPv6, "cali+", dest, false, "DROP", ""),
		}
		for _, prepare := range []func() error{
			func() error { return n.MakeTable(imds.IPv6, ownTable, chainName, top) },
			func() error { return n.MakeTable(imds.IPv6, "somebody-else's", chainName, top) },
		} {
			if err := prepare(); err != nil {
				t.Fatal(err)
			}
		}
		removed, err := Cleanup(imds.Families, patterns)
		if err != nil || len(removed) != 1 || removed[0].Family != imds.IPv6 || removed[0].Backend != NFT || removed[0].Copies != 2 {
			t.Errorf("%+v, %v", removed, err)
		}
		for table, want := range map[string]bool{ownTable: false, "somebody-else's": true} {
			if found, err := n.HasChain(imds.IPv6, table, chainName); err != nil || found != want {
				t.Errorf("the chain in %s is there: %t, %v", table, found, err)
			}
		}
		if removed, err := Cleanup(imds.Families, patterns); err != nil || removed != nil {
			t.Errorf("once more: %+v, %v", removed, err)
		}
	})
}

package netfilter

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
)

func newNode(t *testing.T) (n *testnode.Node, sh func(format string, args ...any) string) {
	t.Helper()
	n = testnode.Make(t)
	return n, func(format string, args ...any) string {
		t.Helper()
		out, err := n.Command(context.Background(), "sh", "-ec", fmt.Sprintf(format, args...)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
}

func (n *NFT) forward(t *testing.T, f imds.Family) NFTChain {
	t.Helper()
	c, err := n.ReadChain(f, "filter", "FORWARD", Scope{Address: f.Endpoint().Addr(), Top: 1000})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What iptables-nft writes is never odd, and our rule is recognised; other rules are odd wherever iptables-nft misprints them.
func TestNFTRules(t *testing.T) {
	t.Parallel()
	for _, f := range imds.Families {
		node, sh := newNode(t)
		iptables, family, ip := "iptables-nft", "ip", "ip"
		if f == imds.IPv6 {
			iptables, family, ip = "ip6tables-nft", "ip6", "ip6"
		}
		address := f.Endpoint().Addr()
		other := map[imds.Family]string{imds.IPv4: "10.0.0.1", imds.IPv6: "2001:db8::1"}[f]
		err := node.Host().Do(func() error {
			var nft NFT
			defer nft.Close()
			if c := nft.forward(t, f); c.Exists || len(c.Top) != 0 {
				t.Errorf("an empty node has %+v", c)
			}
			for _, args := range []string{
				"-j ACCEPT", "-p tcp --dport 80 -j ACCEPT", "-p tcp --dport 80:90 -j ACCEPT", "-p udp ! --sport 1:2 -j DROP",
				"-p tcp -m multiport --dports 1,2 -j DROP", "-m conntrack --ctstate NEW -m comment --comment x -j ACCEPT",
				"-d " + other + "/16 -j ACCEPT", "! -d " + other + " -i eni+ -j RETURN", "-o eth0 -i eth1 -j LOG --log-prefix x",
				"-s " + other + " -m limit --limit 5/s -j ACCEPT", "-p tcp -j REJECT --reject-with tcp-reset", "! -i lo -j MARK --set-mark 1",
			} {
				sh("%s -F FORWARD; %s -A FORWARD %s", iptables, iptables, args)
				c := nft.forward(t, f)
				if len(c.Top) != 1 || c.Top[0].Odd || c.Top[0].Plain || !c.Exists || c.Type != "filter" || c.Hook != unix.NF_INET_FORWARD || c.Dormant {
					t.Errorf("%s %s: %+v", iptables, args, c)
				}
			}
			for _, target := range []string{"DROP", "REJECT"} {
				for _, in := range []string{"eni+", "eni0"} {
					sh("%s -F FORWARD; %s -A FORWARD -i %s -d %s -j %s", iptables, iptables, in, address, target)
					want := NFTRule{Plain: true, In: in, Dest: address, Target: target, Stops: true, Names: true}
					if target == "REJECT" {
						want.RejectWith = map[imds.Family]string{imds.IPv4: "icmp-port-unreachable", imds.IPv6: "icmp6-port-unreachable"}[f]
					}
					c := nft.forward(t, f)
					if len(c.Top) != 1 {
						t.Fatalf("%s: %+v", iptables, c.Top)
					}
					want.Expressions, want.Handle = c.Top[0].Expressions, c.Top[0].Handle
					if !reflect.DeepEqual(c.Top[0], want) {
						t.Errorf("%s: %+v, want %+v", iptables, c.Top[0], want)
					}
				}
			}
			for _, rule := range []string{
				ip + " daddr > " + other + " accept", ip + " daddr { " + other + ", " + address.String() + " } accept",
				ip + " daddr != " + other + " " + ip + " daddr " + address.String() + " accept", "ct state new accept",
				`iifname { "eni0", "eni1" } drop`, `iifname != lo iifname "eni*" accept`, `iif lo iifname "eni*" accept`,
				ip + " daddr vmap { " + address.String() + " : accept }", "meta mark { 1, 2 } accept", "reject",
			} {
				sh("%s -F FORWARD; nft 'add rule %s filter FORWARD %s'", iptables, family, rule)
				if c := nft.forward(t, f); len(c.Top) != 1 || !c.Top[0].Odd || c.Top[0].Plain {
					t.Errorf("nft %s: %+v", rule, c.Top)
				}
				sh("nft flush chain %s filter FORWARD", family)
			}
			sh("nft add table %s filter '{ flags dormant; }'", family)
			if c := nft.forward(t, f); !c.Dormant {
				t.Errorf("a dormant table: %+v", c)
			}
			sh("nft delete table %s filter; nft add table %s filter; nft add chain %s filter FORWARD", family, family, family)
			if c := nft.forward(t, f); !c.Exists || c.Type != "" {
				t.Errorf("a chain without hook: %+v", c)
			}
			if has, err := nft.HasChain(f, "filter", "FORWARD"); !has || err != nil {
				t.Errorf("HasChain: %t, %v", has, err)
			}
			if has, err := nft.HasChain(f, "mangle", "KUBE-IPTABLES-HINT"); has || err != nil {
				t.Errorf("HasChain of a chain that is not there: %t, %v", has, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// To iptables, rules that were put back are the same as before, at the top and with counters at zero.
func TestReplace(t *testing.T) {
	t.Parallel()
	for _, f := range imds.Families {
		node, sh := newNode(t)
		iptables := map[imds.Family]string{imds.IPv4: "iptables-nft", imds.IPv6: "ip6tables-nft"}[f]
		err := node.Host().Do(func() error {
			var nft NFT
			defer nft.Close()
			if err := nft.Replace(f, "filter", "FORWARD", []NFTRule{{}}, nil); err == nil {
				t.Error("a rule was put back into a chain that does not exist")
			}
			match := fmt.Sprintf("-i eni+ -d %s", f.Endpoint())
			sh("%s -A FORWARD -c 5 300 %s -p tcp -j REJECT --reject-with tcp-reset; %s -A FORWARD %s -j REJECT; %s -A FORWARD %s -j DROP",
				iptables, match, iptables, match, iptables, match)
			before := sh("%s -S FORWARD", iptables)
			known := nft.forward(t, f).Top
			if !known[0].Plain || !known[0].TCP || known[1].TCP {
				t.Errorf("the rules that match TCP: %+v", known)
			}
			sh("%s -F FORWARD; %s -A FORWARD -j ACCEPT", iptables, iptables)
			if err := nft.Replace(f, "filter", "FORWARD", known, nil); err != nil {
				return err
			}
			if after := sh("%s -S FORWARD", iptables); after != before+"-A FORWARD -j ACCEPT\n" {
				t.Errorf("before:\n%safter:\n%s", before, after)
			}
			if after := sh("%s -S FORWARD -v", iptables); strings.Contains(after, "-c 5 300") {
				t.Errorf("the counters are old:\n%s", after)
			}
			sh("%s -C FORWARD %s -j DROP", iptables, match)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The summary changes with every rule, and asking which tables are loaded loads none.
func TestLegacyInfo(t *testing.T) {
	t.Parallel()
	for _, f := range imds.Families {
		node, sh := newNode(t)
		iptables := map[imds.Family]string{imds.IPv4: "iptables-legacy", imds.IPv6: "ip6tables-legacy"}[f]
		err := node.Host().Do(func() error {
			read := func() (LegacyInfo, bool) {
				info, loaded, err := ReadLegacyInfo(f, "filter")
				if err != nil {
					t.Fatal(err)
				}
				return info, loaded
			}
			if _, loaded := read(); loaded {
				t.Error("the table is loaded before anybody used it")
			}
			sh("%s -w -S >/dev/null", iptables)
			empty, loaded := read()
			if !loaded || !empty.Empty() {
				t.Errorf("an empty table: %+v, loaded %t", empty, loaded)
			}
			sh("%s -w -A FORWARD -j ACCEPT", iptables)
			if one, _ := read(); one == empty || one.Empty() || one.Entries != empty.Entries+1 {
				t.Errorf("a table with a rule: %+v", one)
			}
			sh("%s -w -F FORWARD", iptables)
			if again, _ := read(); again != empty {
				t.Errorf("the table after a flush: %+v, want %+v", again, empty)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// The watch reports a transaction, the families that it changed, and the process that made it.
func TestNFTWatch(t *testing.T) {
	t.Parallel()
	node, sh := newNode(t)
	woken := make(chan []imds.Family, 100)
	w := &NFTWatch{
		Wake: func(changed ...imds.Family) { woken <- changed },
		Lost: func(err error) { t.Errorf("lost: %v", err) },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- node.Host().Do(func() error {
			w.Run(ctx)
			return nil
		})
	}()
	if changed := <-woken; changed != nil {
		t.Errorf("a new subscription wakes %v, want everybody", changed)
	}
	if w.LastWriter() != (Writer{}) {
		t.Errorf("the last writer of an empty node is %+v", w.LastWriter())
	}
	sh("iptables-nft -A FORWARD -j ACCEPT")
	if changed := <-woken; !slices.Equal(changed, []imds.Family{imds.IPv4}) {
		t.Errorf("a rule in ip wakes %v", changed)
	}
	if last := w.LastWriter(); last.PID == 0 || !strings.HasPrefix(last.Name, "iptables") {
		t.Errorf("the last writer is %+v", last)
	}
	for _, c := range []struct {
		script string
		want   []imds.Family
	}{
		{"add table ip6 x", []imds.Family{imds.IPv6}},
		{"add table ip x; add table ip6 y; add table ip y", []imds.Family{imds.IPv4, imds.IPv6}},
		{"add table ip z; add table inet z", nil},
		{"add table bridge z", nil},
		{"delete table ip x", []imds.Family{imds.IPv4}},
	} {
		sh("nft '" + c.script + "'")
		if changed := <-woken; !slices.Equal(changed, c.want) {
			t.Errorf("%q wakes %v, want %v (none: everybody)", c.script, changed, c.want)
		}
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

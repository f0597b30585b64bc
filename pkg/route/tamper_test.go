package route

import (
	"fmt"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// tampers are ways to tamper with the pieces so that they exist but don't work, or not as they should: each a script for a
// family, with $E for the endpoint, $G for the gateway, $S for the sink and $T for the table.
var tampers = []struct {
	name  string
	only  imds.Family // empty for both
	how   string
	state layer.State
}{
	{"a route for another source, behind ours", imds.IPv6, "ip -6 route add $E from 2001:db8:dead::/64 via $G dev eth0 table $T metric 2000", Shadowed},
	{"a blackhole for another source", imds.IPv6, "ip -6 route add blackhole $E from 2001:db8:dead::/64 table $T metric 1000", Shadowed},
	{"a route for half of all sources", imds.IPv6, "ip -6 route add $E from ::/1 via $G dev eth0 table $T metric 1", Shadowed},
	{"a route for a tos, behind ours", imds.IPv4, "ip route add $E tos 0x10 dev eth0 table $T metric 2000", Shadowed},
	{"a throw for a tos", imds.IPv4, "ip route add throw $E tos 0x10 table $T metric 4000", Shadowed},
	{"a blackhole for a tos", imds.IPv4, "ip route add blackhole $E tos 0x10 table $T metric 1000", Shadowed},
	{"a route by a nexthop object", "", "ip nexthop add id 5 via $G dev eth0; ip -$F route add $E nhid 5 table $T metric 7", Shadowed},
	{"a nexthop object in the place of the sink", "", "ip nexthop add id 5 via $G dev eth0; ip -$F route replace $E nhid 5 table $T metric 1", layer.Missing},
	{"a throw in the place of the sink", "", "ip -$F route del $E dev $S table $T; ip -$F route add throw $E table $T metric 1", layer.Missing},
	{"a throw in the place of both", "", "ip -$F route flush table $T; ip -$F route add throw $E table $T metric 1", layer.Missing},
	{"two ways instead of the sink", imds.IPv4, "ip -$F route del $E dev $S table $T; ip -$F route add $E table $T metric 1 nexthop via $G dev eth0 nexthop via $G dev eth0 weight 2", layer.Missing},
	{"a rule without its not", "", "ip -$F rule del pref 0 not iif lo lookup $T; ip -$F rule add pref 0 iif lo lookup $T protocol kernel", layer.Missing},
	{"the same beside ours", "", "ip -$F rule add pref 0 iif lo lookup $T protocol static", Shadowed},
	{"a rule of another priority into our table", "", "ip -$F rule add pref 100 lookup $T", Shadowed},
	{"a small MTU", "", "ip link set $S mtu 1200", layer.Missing},
	{"the loopback down and up", imds.IPv6, "ip link set lo down; ip link set lo up", layer.Missing},
}

func (k *kept) tamper(f imds.Family, how string) {
	k.t.Helper()
	gateway := map[imds.Family]string{imds.IPv4: "10.0.0.1", imds.IPv6: "2001:db8::1"}[f]
	k.sh("F=%s E=%s G=%s S=%s T=%d; %s", version(f), f.Endpoint().Addr(), gateway, namesOf(f).sink, table, how)
}

// What is put beside the pieces, or in their place, is noticed and removed, and nothing else is. Afterwards the node is served,
// and no pod.
func TestTampered(t *testing.T) {
	k := keep(t)
	for _, f := range imds.Families {
		for _, c := range tampers {
			if c.only != "" && c.only != f {
				continue
			}
			k.repair(f)
			k.must(f, layer.Enforced, "")
			k.tamper(f, c.how)
			found := k.repair(f)
			if found.State != c.state {
				t.Errorf("%s: %s: %s (%s), want %s", f, c.name, found.State, found.Detail, c.state)
			}
			k.must(f, layer.Enforced, "")
			k.served(f, false)
			k.sh("ip nexthop flush >/dev/null 2>&1; true")
		}
	}
}

// A rule about an interface lo that is not the loopback would be about the node's own packets: none is made then.
func TestLoopbackOfAnotherName(t *testing.T) {
	k := keep(t)
	k.repairAll()
	k.sh("ip link set lo down; ip link set lo name lo0; ip link set lo0 up")
	for _, f := range imds.Families {
		for range 2 {
			found := k.look(f)
			err := k.Host().Do(func() error { return k.layers[f].Repair(policy.Policy{}, found) })
			if err == nil || !strings.Contains(err.Error(), "the loopback interface is called lo0") {
				t.Errorf("%s: repairing %s (%s): %v", f, found.State, found.Detail, err)
			}
		}
		k.must(f, layer.Missing, "the policy rule is not there")
		k.served(f, true)
	}
	k.sh("ip link set lo0 down; ip link set lo0 name lo; ip link set lo up")
	k.repairAll()
	for _, f := range imds.Families {
		k.served(f, false)
	}
}

// Links of others stay, also one that has our name as an altname, or the name of our other end; ours go, whatever they are called.
func TestLinksByName(t *testing.T) {
	k := keep(t)
	k.repairAll()
	name, end := namesOf(imds.IPv4).sink, namesOf(imds.IPv4).end
	repair := func() error {
		found := k.look(imds.IPv4)
		return k.Host().Do(func() error { return k.layers[imds.IPv4].Repair(policy.Policy{}, found) })
	}
	has := func(what string) bool { return strings.Contains(k.sh("ip -br link"), what) }

	k.sh("ip link del %s; ip link property add dev %s altname %s", name, podLinks[1], name)
	if err := repair(); err == nil || !strings.Contains(err.Error(), "is an alternative name of "+podLinks[1]) {
		t.Errorf("with an altname in the way: %v", err)
	}
	if err := k.Host().Do(func() error { _, err := Cleanup(imds.IPv4); return err }); err != nil {
		t.Error(err)
	}
	if !has(podLinks[1]) {
		t.Fatal("a pod's link is gone")
	}
	k.sh("ip link property del dev %s altname %s", podLinks[1], name)
	k.repair(imds.IPv4)
	k.must(imds.IPv4, layer.Enforced, "")

	k.sh("ip link del %s; ip link add %s type veth peer name foreign0; ip link set foreign0 up", name, end)
	if err := repair(); err == nil || !has("foreign0") {
		t.Errorf("with somebody's link under the name of the other end: %v, it is there: %t", err, has("foreign0"))
	}
	k.sh("ip link del foreign0")
	k.repair(imds.IPv4)
	k.must(imds.IPv4, layer.Enforced, "")

	for i := range 3 {
		k.sh("ip link set %s down; ip link set %s name a%d; ip link set %s name b%d", name, name, i, end, i)
		k.repair(imds.IPv4)
		k.must(imds.IPv4, layer.Enforced, "")
		if pair := fmt.Sprintf("b%[1]d@a%[1]d", i); has(pair) {
			t.Errorf("the pair %s stays", pair)
		}
	}
	k.sh("ip link set %s down; ip link set %s name a; ip link set %s name b", name, name, end)
	if err := k.Host().Do(func() error { _, err := Cleanup(imds.IPv4); return err }); err != nil || has("b@a") {
		t.Errorf("cleaned up: %v; the pair is there: %t", err, has("b@a"))
	}
}

// Cleanup removes what counts as ours, whatever its protocol says, including every copy.
func TestCleanupOfCopies(t *testing.T) {
	k := keep(t)
	k.repairAll()
	for _, f := range imds.Families {
		k.tamper(f, "ip -$F route replace blackhole $E table $T metric 1000; ip -$F rule add pref 0 iif lo lookup $T protocol static; "+
			"ip -$F rule save >/run/rules; ip -$F rule restore </run/rules 2>/dev/null || true")
		var err error
		if doErr := k.Host().Do(func() error { _, err = Cleanup(f); return nil }); doErr != nil || err != nil {
			t.Errorf("%s: %v, %v", f, doErr, err)
		}
		left := k.sh("ip -%[1]s rule; ip -%[1]s route show table all; ip -br link", version(f))
		if strings.Contains(left, "169254") || strings.Contains(left, namesOf(f).sink) {
			t.Errorf("%s: left is\n%s", f, left)
		}
	}
}

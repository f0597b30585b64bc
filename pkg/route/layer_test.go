package route

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// kept are the layers of both families on a throwaway node, looked at and repaired as keepers do it.
type kept struct {
	*testnode.Node
	t      *testing.T
	layers map[imds.Family]*Layer
	pods   []*testnode.Pod
}

// The interfaces of pods that the literal rule covers, and of those that it doesn't.
var podLinks = []string{"eni0123456789a", "vlan0123456789", "veth01234567"}

func keep(t *testing.T) *kept {
	t.Helper()
	n := testnode.Make(t)
	k := &kept{Node: n, t: t, layers: map[imds.Family]*Layer{}}
	t.Cleanup(func() {
		for _, l := range k.layers {
			l.kernel.(*node).close()
		}
	})
	for _, name := range podLinks {
		pod, err := n.AddPod(name)
		if err != nil {
			t.Fatal(err)
		}
		k.pods = append(k.pods, pod)
	}
	for _, f := range imds.Families {
		k.layers[f] = New(f)
	}
	return k
}

// sh runs a command on the node.
func (k *kept) sh(format string, args ...any) string {
	k.t.Helper()
	command := fmt.Sprintf(format, args...)
	out, err := k.Command(context.Background(), "sh", "-c", command).CombinedOutput()
	if err != nil {
		k.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return string(out)
}

func (k *kept) look(f imds.Family) (found layer.Finding) {
	k.t.Helper()
	if err := k.Host().Do(func() error { found = k.layers[f].Look(policy.Policy{}, func(string) {}); return nil }); err != nil {
		k.t.Fatal(err)
	}
	return found
}

// repair looks and repairs, and returns what there was to repair.
func (k *kept) repair(f imds.Family) (found layer.Finding) {
	k.t.Helper()
	found = k.look(f)
	if !found.State.Drifted() || found.State == layer.Unknown {
		return found
	}
	if err := k.Host().Do(func() error { return k.layers[f].Repair(policy.Policy{}, found) }); err != nil {
		k.t.Errorf("repairing %s, %s: %v", f, found.Detail, err)
	}
	return found
}

func (k *kept) repairAll() {
	k.t.Helper()
	for _, f := range imds.Families {
		k.repair(f)
		k.must(f, layer.Enforced, "")
	}
}

// must looks, and fails the test unless the state is this one and the detail has these words.
func (k *kept) must(f imds.Family, want layer.State, words string) layer.Finding {
	k.t.Helper()
	found := k.look(f)
	if found.State != want || !strings.Contains(found.Detail, words) || (words == "") != (found.Detail == "") {
		k.t.Errorf("%s: %s (%q), want %s (%q)", f, found.State, found.Detail, want, words)
	}
	return found
}

func url(f imds.Family) string {
	if f == imds.IPv6 {
		return "http://[" + testnode.IMDSv6 + "]/latest/meta-data/instance-id"
	}
	return "http://" + testnode.IMDSv4 + "/latest/meta-data/instance-id"
}

// patience is for an answer that must come, on however busy a machine.
const patience = time.Minute

// answered asks the endpoint from a namespace.
func answered(from *testnode.Namespace, f imds.Family, wait time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	text, err := from.Get(ctx, url(f))
	return err == nil && strings.HasPrefix(text, "i-")
}

// served fails the test unless the node itself, and every pod or no pod, gets an answer.
func (k *kept) served(f imds.Family, pods bool) {
	k.t.Helper()
	if !answered(k.Host(), f, patience) {
		k.t.Errorf("%s: the node itself gets no answer", f)
	}
	for _, pod := range k.pods {
		wait := 200 * time.Millisecond // for an answer that must not come
		if pods {
			wait = patience
		}
		before := k.IMDS().Requests()
		if got := answered(pod.Namespace, f, wait); got != pods {
			k.t.Errorf("%s: a pod behind %s is answered: %t, want %t", f, pod.Ifname, got, pods)
		}
		if !pods && k.IMDS().Requests() != before {
			k.t.Errorf("%s: a request of the pod behind %s has reached the endpoint", f, pod.Ifname)
		}
	}
}

// Pods behind whatever interface are kept from the endpoint, the node is not, whatever its rp_filter; and once all is
// removed everything is as it was.
func TestEveryInterfaceIsClosed(t *testing.T) {
	k := keep(t)
	state := func() string {
		return k.sh("for f in 4 6; do ip -$f rule; ip -$f route show table all | grep -v ^multicast | sort; done; ip -br link | awk '{print $1}'")
	}
	before := state()
	for _, f := range imds.Families {
		k.served(f, true)
	}
	k.repairAll()
	for _, filter := range []int{0, 1, 2} {
		k.sh("for c in /proc/sys/net/ipv4/conf/*/rp_filter; do echo %d > $c; done", filter)
		for _, f := range imds.Families {
			k.served(f, false)
		}
	}
	if err := k.Host().Do(func() error { return cleanAll(t, 4) }); err != nil {
		t.Error(err)
	}
	if err := k.Host().Do(func() error { return cleanAll(t, 0) }); err != nil {
		t.Errorf("again: %v", err)
	}
	if after := state(); after != before {
		t.Errorf("the node has\n%s, and had\n%s", after, before)
	}
	k.sh("for c in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $c; done")
	for _, f := range imds.Families {
		k.served(f, true)
	}
}

// cleanAll cleans both families up, and wants a number of pieces to be removed from each.
func cleanAll(t *testing.T, want int) error {
	for _, f := range imds.Families {
		removed, err := Cleanup(f)
		if err != nil {
			return err
		}
		if len(removed) != want {
			t.Errorf("%s: removed %q, want %d pieces", f, removed, want)
		}
	}
	return nil
}

// losses are the ways in which pieces are lost, each with what is then missing.
var losses = []struct {
	how     string // %[1]s is 4 or 6, %[2]s the sink
	missing []piece
}{
	{"ip -%[1]s rule del pref 0 not iif lo lookup 169254", []piece{policyRule}},
	{"ip -%[1]s route del blackhole $(ip -%[1]s route show table 169254 | awk '$1 == \"blackhole\" {print $2}') table 169254 metric 1000", []piece{blackhole}},
	{"ip -%[1]s route del $(ip -%[1]s route show table 169254 | awk '$1 != \"blackhole\" {print $1}') dev %[2]s table 169254", []piece{sinkRoute}},
	{"ip link del %[2]s", []piece{sink, sinkRoute}},
	{"ip link set %[2]s down", []piece{sink, sinkRoute}},
	{"ip link set %[2]s arp on", []piece{sink, sinkRoute}},
	{"ip link set %[2]s-end up", []piece{sink, sinkRoute}},
	{"ip link set %[2]s down; ip link set %[2]s name lost", []piece{sink, sinkRoute}},
	{"ip link add bridge0 type bridge; ip link set %[2]s master bridge0", []piece{sink, sinkRoute}},
	{"ip -%[1]s route flush table 169254", []piece{blackhole, sinkRoute}},
}

// The loss of each piece is noticed, alone and together with every other, and put back. The node is served all the time, and
// afterwards no pod is.
func TestLostPieces(t *testing.T) {
	k := keep(t)
	for _, f := range imds.Families {
		names := namesOf(f)
		lose := func(ways ...int) (command string, missing []piece) {
			for _, i := range ways {
				command += fmt.Sprintf(losses[i].how, version(f), names.sink) + "; "
				missing = append(missing, losses[i].missing...)
			}
			return command, missing
		}
		for a := range losses {
			for b := range losses[:a+1] {
				k.repair(f)
				k.must(f, layer.Enforced, "")
				ways := []int{b, a}[btoi(a == b):]
				command, missing := lose(ways...)
				// The second way may find that the first has taken it along.
				k.sh("{ %s } 2>/dev/null; true", command)
				found := k.look(f)
				if found.State != layer.Missing {
					t.Errorf("%s: after %s: %s, %s", f, command, found.State, found.Detail)
				}
				for _, p := range missing {
					if !strings.Contains(found.Detail, string(p)) {
						t.Errorf("%s: after %s: %q, %s is not in it", f, command, found.Detail, p)
					}
				}
				for mode := range 3 {
					k.sh("for a in all eth0; do echo %d > /proc/sys/net/ipv4/conf/$a/rp_filter; done", mode)
					if !answered(k.Host(), f, patience) {
						t.Errorf("%s: after %s, with rp_filter %d, the node gets no answer", f, command, mode)
					}
				}
				k.repair(f)
				k.must(f, layer.Enforced, "")
				k.sh("ip link del lost 2>/dev/null; ip link del bridge0 2>/dev/null; true")
			}
		}
		k.repair(f)
		k.served(f, false)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// What is evaluated before ours is noticed. Of that, only routes in our own table are ours to delete; a policy rule before ours
// remains, and the error says what to do.
func TestShadowed(t *testing.T) {
	k := keep(t)
	k.repairAll()
	for _, f := range imds.Families {
		ip, to := "ip -"+version(f), f.Endpoint().Addr()

		metric := map[imds.Family]int{imds.IPv4: 0, imds.IPv6: sinkMetric}[f] // in IPv6, 0 is the default, which is more than ours
		k.sh("%s route append %s dev eth0 table %d metric %d", ip, to, table, metric)
		found := k.must(f, Shadowed, "the route")
		k.repair(f)
		k.must(f, layer.Enforced, "")
		if len(found.Rules) != len(pieces) {
			t.Errorf("%s: shadowed, with the pieces %q", f, found.Rules)
		}

		k.sh("%s rule del pref 0 not iif lo lookup %d; %s rule add pref 0 iif %s lookup main", ip, table, ip, podLinks[0])
		found = k.look(f)
		err := k.Host().Do(func() error { return k.layers[f].Repair(policy.Policy{}, found) })
		if found.State != layer.Missing || err == nil || !strings.Contains(err.Error(), "is not ours to delete") {
			t.Errorf("%s: putting the policy rule back behind another: %s, %v", f, found.State, err)
		}
		found = k.must(f, Shadowed, `the policy rule "0: iif eni0123456789a lookup 254" may lead packets elsewhere`)
		err = k.Host().Do(func() error { return k.layers[f].Repair(policy.Policy{}, found) })
		if err == nil || !strings.Contains(err.Error(), "is not ours to delete") {
			t.Errorf("%s: repairing: %v", f, err)
		}
		if !answered(k.pods[0].Namespace, f, patience) {
			t.Errorf("%s: shadowed, and yet nothing gets by", f)
		}
		k.sh("%s rule del pref 0 iif %s lookup main", ip, podLinks[0])
		k.must(f, layer.Enforced, "")

		k.sh("%s route add %s dev eth0 table local", ip, to)
		k.must(f, Shadowed, "table 255")
		k.sh("%s route del %s dev eth0 table local", ip, to)
		k.must(f, layer.Enforced, "")
	}
}

// Other rules that are evaluated before ours but can't lead its packets elsewhere don't matter, nor do those after it.
func TestHarmlessNeighbours(t *testing.T) {
	k := keep(t)
	k.sh("ip rule add pref 0 to 10.0.0.0/8 lookup main; ip rule add pref 0 iif lo lookup main; ip rule add pref 0 to 169.254.169.254 blackhole")
	k.repairAll()
	k.sh("ip rule add pref 1 lookup main; ip rule add pref 10 iif %s lookup main; ip rule add pref 0 from 10.0.0.0/8 lookup main", podLinks[1])
	k.must(imds.IPv4, layer.Enforced, "")
	k.sh("ip rule del pref 0 to 169.254.169.254 blackhole") // which would stop the node itself
	k.served(imds.IPv4, false)
	k.must(imds.IPv4, layer.Enforced, "")
}

// With IPv6 disabled on the node nothing can be routed into a link; the blackhole does it alone.
func TestBlackholeAlone(t *testing.T) {
	k := keep(t)
	k.sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	k.repair(imds.IPv6)
	k.must(imds.IPv6, layer.Enforced, "by the blackhole alone: IPv6 is disabled on imds-guard6")
	k.served(imds.IPv6, false)
	k.sh("echo 0 > /proc/sys/net/ipv6/conf/imds-guard6/disable_ipv6")
	k.must(imds.IPv6, layer.Missing, "the route into the sink is not there")
	k.repair(imds.IPv6)
	k.must(imds.IPv6, layer.Enforced, "")

	k.repair(imds.IPv4)
	k.sh("echo 1 > /proc/sys/net/ipv4/conf/imds-guard4/ignore_routes_with_linkdown")
	k.must(imds.IPv4, layer.Enforced, "by the blackhole alone: routes without a carrier are ignored")
	k.served(imds.IPv4, false)
}

// counts reports whether this kernel counts packets dropped by a link without a carrier. 6.12 and 6.18 do, 6.1 doesn't
// (net/sched/sch_generic.c, noop_enqueue).
func counts(t *testing.T) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	return !strings.HasPrefix(unix.ByteSliceToString(name.Release[:]), "6.1.")
}

// The sink counts the packets that it dropped, even across its own loss, and nothing else reaches it.
func TestBlockedPackets(t *testing.T) {
	k := keep(t)
	k.repairAll()
	once, twice := uint64(10), uint64(20)
	if !counts(t) {
		once, twice = 0, 0
	}
	// blocked waits until so many are counted: packets may wait for a busy processor.
	blocked := func(f imds.Family, want uint64) (n uint64) {
		for begun := time.Now(); ; time.Sleep(time.Millisecond) {
			if n = k.look(f).Blocked; n >= want || time.Since(begun) > patience {
				return n
			}
		}
	}
	for i, f := range imds.Families {
		if n := blocked(f, 0); n != 0 {
			t.Errorf("%s: %d packets before any was sent", f, n)
		}
		send := func() {
			for range 10 {
				conn, err := k.pods[0].Dial(context.Background(), "udp", net.JoinHostPort(f.Endpoint().Addr().String(), "80"))
				if err == nil {
					_, err = conn.Write([]byte("x"))
					err = errors.Join(err, conn.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		send()
		if n := blocked(f, once); n != once {
			t.Errorf("%s: %d packets, want %d", f, n, once)
		}
		k.sh("ip link del %s", namesOf(f).sink)
		k.repair(f)
		if n := blocked(f, once); n != once {
			t.Errorf("%s: %d packets after the sink was made anew", f, n)
		}
		send()
		if n := blocked(f, twice); n != twice {
			t.Errorf("%s: %d packets, want %d", f, n, twice)
		}
		if i == 0 && blocked(imds.IPv6, 0) != 0 {
			t.Error("packets of IPv4 are counted as IPv6")
		}
	}
}

// A link of our sink's name that is somebody else's is not touched; the blackhole keeps pods from the endpoint.
func TestForeignLinkOfThatName(t *testing.T) {
	k := keep(t)
	name := namesOf(imds.IPv4).sink
	k.sh("ip link add %s type bridge; ip link set %s up", name, name)
	found := k.look(imds.IPv4)
	err := k.Host().Do(func() error { return k.layers[imds.IPv4].Repair(policy.Policy{}, found) })
	if err == nil || !strings.Contains(err.Error(), "the name imds-guard4 is taken: it is a bridge and not ours") {
		t.Errorf("repairing: %v", err)
	}
	k.must(imds.IPv4, layer.Missing, "the sink (it is a bridge and not ours)")
	k.served(imds.IPv4, false)
	if routes := k.sh("ip route show table %d", table); strings.Contains(routes, name) {
		t.Errorf("a route leads into it:\n%s", routes)
	}
	k.sh("ip route add %s dev %s table %d metric %d proto kernel", imds.IPv4.Endpoint().Addr(), name, table, sinkMetric)
	if err := k.Host().Do(func() error { return k.layers[imds.IPv4].Repair(policy.Policy{}, k.look(imds.IPv4)) }); err == nil {
		t.Error("the layer is repaired")
	}
	if routes := k.sh("ip route show table %d", table); strings.Contains(routes, name) {
		t.Errorf("a route leads into it still:\n%s", routes)
	}
	if err := k.Host().Do(func() error { _, err := Cleanup(imds.IPv4); return err }); err != nil {
		t.Errorf("cleaning up: %v", err)
	}
	if links := k.sh("ip -br link"); !strings.Contains(links, name) {
		t.Error("the foreign link is gone")
	}
}

// What is read back is what `ip` would be told to make, and what `ip` makes when it is told so is the layer.
func TestPiecesAreSaid(t *testing.T) {
	k := keep(t)
	for _, f := range imds.Families {
		k.sh("%s", strings.Join(Commands(f), "\n"))
		k.must(f, layer.Enforced, "")
		k.served(f, false)
	}
	want := []string{
		"ip -4 route add blackhole 169.254.169.254 table 169254 metric 1000 protocol kernel",
		"ip -4 rule add pref 0 not iif lo lookup 169254 protocol kernel",
		"ip link add imds-guard4 up arp off mtu 65535 type veth peer name imds-guard4-end",
		"ip -4 route add 169.254.169.254 dev imds-guard4 table 169254 metric 1 protocol kernel",
	}
	if got := k.look(imds.IPv4).Rules; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

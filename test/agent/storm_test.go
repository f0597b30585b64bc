package agent

import (
	"context"
	"flag"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

var (
	stormSeed = flag.Uint64("storm.seed", uint64(time.Now().UnixNano()), "the order in which a storm tampers")
	stormTime = flag.Duration("storm.time", time.Minute, "for how long")
)

// tampering is everything by which others remove iptables' rules or cover them: as commands with $IPT for the backend's name in
// a family and $E for the endpoint. (`ip rule flush` takes the node's own rules with it, without which nobody would be served.)
var tampering = []string{
	"$IPT -w -F FORWARD",
	"$IPT -w -D FORWARD -d $E -i eni+ -j DROP",
	"$IPT -w -I FORWARD -j ACCEPT",
	"$IPT -w -I FORWARD -i eni+ -m conntrack --ctstate NEW,ESTABLISHED,RELATED -j ACCEPT",
	"$IPT -w -P FORWARD ACCEPT; $IPT -w -F; $IPT -w -X",
	"printf '*filter\\n:INPUT ACCEPT\\n:FORWARD ACCEPT\\n:OUTPUT ACCEPT\\n-A FORWARD -j ACCEPT\\nCOMMIT\\n' | $IPT-restore -w",
	"$IPT-save | grep -v $E | $IPT-restore -w",
	"nft flush ruleset",
	"nft 'add table ip filter; delete table ip filter; add table ip6 filter; delete table ip6 filter'",
	"ip -4 rule flush; ip -4 rule add pref 32766 lookup main; ip -4 rule add pref 32767 lookup default; " +
		"ip -6 rule flush; ip -6 rule add pref 32766 lookup main",
}

// tamperingOf is one of them as a script.
func tamperingOf(v variant, i int) string {
	return strings.NewReplacer("$IPT", v.iptables(), "$E", v.address()).Replace(tampering[i])
}

// storm tampers in random order, as fast as it can, and kills the agent now and then, while pods keep asking in both families,
// over TCP and UDP. With the layer of sockets, so does a pod with a macvlan. It returns how many of their packets reached the
// endpoint, how many were sent in total, and how often it tampered. It ends early
// once enough, which may ask how many have arrived so far, says so.
func storm(
	t *testing.T, layers string, backend rules.Backend, lasts time.Duration, enough func(arrivals func() int) bool,
) (reached, sent, tampered int) {
	n, others := bothLayers(t)
	n.layers = layers
	for i := range tampering {
		for _, f := range imds.Families {
			v := variant{backend, f}
			n.sh("%s -w -I FORWARD -d %s -i eni+ -j DROP; %s", v.iptables(), v.address(), tamperingOf(v, i))
		}
	}
	args := []string{"--backend", string(backend), "--resync-period", "1s", "--interface", "eni+,vlan+,veth+"}
	var past *testnode.Pod
	if strings.Contains(layers, cgroup.LayerName) {
		past, args = n.podPastForward(args)
	}
	a := n.startReady(args...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	arrivals := countArrivals(t, n)
	ctx, stop := context.WithTimeout(t.Context(), lasts)
	defer stop()
	var asking sync.WaitGroup
	var asked [12]int
	for i, pod := range append(others, n.pod) {
		for j, f := range imds.Families {
			for k, network := range []string{"tcp", "udp"} {
				asking.Go(func() { asked[4*i+2*j+k] = ask(ctx, pod, network, f) })
			}
		}
	}
	calls := 0
	if past != nil {
		asking.Go(func() {
			for ; ctx.Err() == nil; calls++ {
				if got := n.calls(past.Namespace); !allAre(got, "EPERM") {
					t.Errorf("the calls of a pod with a macvlan end in %q", got)
				}
			}
		})
	}
	random := rand.New(rand.NewPCG(*stormSeed, 0))
	for ; ctx.Err() == nil && !enough(arrivals); tampered++ {
		i := random.IntN(len(tampering) + 1)
		if i == len(tampering) {
			a.kill()
			a = n.start(args...)
			continue
		}
		f := imds.Families[random.IntN(2)]
		_, _ = n.try("%s", tamperingOf(variant{backend, f}, i)) // what is to be deleted may have gone
	}
	stop()
	asking.Wait()
	for _, k := range asked {
		sent += k
	}
	sent += calls
	if past != nil && calls == 0 {
		t.Error("the pod with a macvlan has not asked")
	}
	reached = arrivals()
	eventually(t, "after the storm all layers are in force", func() bool { return a.ready() && a.metric("imds_guard_degraded") == 0 })
	if sent == 0 || tampered == 0 {
		t.Errorf("%d attempts, %d times tampered: there was no storm", sent, tampered)
	}
	// That nothing came was no doing of the storm's.
	a.kill()
	if code, _, stderr := n.guard("cleanup", "--interface", "eni+,vlan+,veth+"); code != 0 {
		t.Errorf("cleanup ends with %d: %s", code, stderr)
	}
	for _, v := range variants[:2] {
		if !n.served(v) {
			t.Errorf("%s: after the storm and the cleanup the pod is not served", v.family)
		}
	}
	return reached, sent, tampered
}

// podPastForward adds a pod that is served by a macvlan, and the flags by which its cgroup is known.
func (n *node) podPastForward(args []string) (*testnode.Pod, []string) {
	n.t.Helper()
	pod, err := n.AddPod("eni0123456789f")
	if err != nil {
		n.t.Fatal(err)
	}
	n.sh("NETNS=%s; %s", pod.Path(), macvlan)
	if err := useMacvlan(pod); err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, "the macvlan leads to the endpoint", func() bool {
		conn, err := pod.Dial(n.t.Context(), "tcp", "169.254.169.254:80")
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	pods, err := n.PodsCgroup()
	if err != nil {
		n.t.Fatal(err)
	}
	return pod, append(args, "--pods-cgroup", pods)
}

// countArrivals counts, from now on, the packets that come to the endpoint. (The stand-in for it answers, so that whole
// connections may come about.)
func countArrivals(t *testing.T, n *node) (arrivals func() int) {
	t.Helper()
	outside := func(args ...string) string {
		out, err := n.Outside().Command(context.Background(), "nft", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nft %s: %v\n%s", args, err, out)
		}
		return string(out)
	}
	// What neighbours ask and tell each other is no pod's: IPv6 asks by the address that it answers from (net/ipv6/ndisc.c,
	// ndisc_solicit), so that the node tells the endpoint's who it is, and some seconds later asks whether it is still there.
	outside("table inet count { chain input { type filter hook input priority 0; " +
		"icmpv6 type { nd-neighbor-advert, nd-neighbor-solicit } accept; " +
		"ip daddr 169.254.169.254 counter; ip6 daddr fd00:ec2::254 counter; }; }")
	return func() (sum int) {
		for line := range strings.Lines(outside("list", "table", "inet", "count")) {
			if fields := strings.Fields(line); len(fields) > 5 && fields[3] == "counter" {
				k, err := strconv.Atoi(fields[5])
				if err != nil {
					t.Fatal(err)
				}
				sum += k
			}
		}
		return sum
	}
}

// ask sends to the endpoint from a pod until ctx ends, and returns how often.
func ask(ctx context.Context, pod *testnode.Pod, network string, f imds.Family) (n int) {
	address := net.JoinHostPort(f.Endpoint().Addr().String(), "80")
	for ; ctx.Err() == nil; n++ {
		once, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
		if conn, err := pod.Dial(once, network, address); err == nil {
			_, _ = conn.Write([]byte("GET / HTTP/1.0\r\n\r\n"))
			conn.Close()
		}
		cancel()
	}
	return n
}

// Whatever is done to the firewall, and to the agent, not one packet of a pod comes to the endpoint.
func TestTamperStorm(t *testing.T) {
	for _, b := range []rules.Backend{rules.NFT, rules.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Logf("seed %d", *stormSeed)
			layers := rules.LayerName + "," + route.LayerName + "," + cgroup.LayerName
			reached, sent, tampered := storm(t, layers, b, *stormTime, func(func() int) bool { return false })
			t.Logf("%d packets at the endpoint; %d attempts, %d times tampered", reached, sent, tampered)
			if reached != 0 {
				t.Errorf("%d packets of pods reached the endpoint; the order is that of -storm.seed=%d", reached, *stormSeed)
			}
		})
	}
}

// Without the route layer the same storm lets packets through, which proves that it tests something. How
// soon is a matter of luck.
func TestTamperStormLeaksWithoutTheRoute(t *testing.T) {
	for _, b := range []rules.Backend{rules.NFT, rules.Legacy} {
		t.Run(string(b), func(t *testing.T) {
			t.Parallel()
			reached, _, tampered := storm(t, rules.LayerName, b, deadline, func(arrivals func() int) bool { return arrivals() > 0 })
			if t.Logf("%d packets at the endpoint, %d times tampered", reached, tampered); reached == 0 {
				t.Error("without the route layer nothing reached the endpoint: the storm is none")
			}
		})
	}
}

package agent

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// bothLayers is a node on which both layers are asked for, with pods behind the interfaces that EKS gives them beside the
// usual one.
func bothLayers(t *testing.T) (n *node, others []*testnode.Pod) {
	n = newNode(t)
	n.layers = rules.LayerName + "," + route.LayerName
	for _, name := range []string{"vlan0123456789a", "veth01234567"} {
		pod, err := n.AddPod(name)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, pod)
	}
	return n, others
}

func gauge(name string, labels ...string) string {
	if len(labels) == 0 {
		return "imds_guard_" + name
	}
	return fmt.Sprintf("imds_guard_%s{%s}", name, strings.Join(labels, ","))
}

// Every interface is covered, and no flag is suggested; each layer is named everywhere; cleanup leaves nothing.
func TestBothLayers(t *testing.T) {
	t.Parallel()
	n, others := bothLayers(t)
	state := func() string {
		return n.sh("for f in 4 6; do ip -$f rule; ip -$f route show table all | grep -v ^multicast | sort; done; ip -br link | cut -d' ' -f1")
	}
	before := state()
	a := n.startReady("--backend", "nft", "--resync-period", "200ms")
	for _, v := range variants[:2] {
		n.mustBeBlocked(v)
		for _, pod := range others {
			same := *n
			same.pod = pod
			same.mustBeBlocked(v)
		}
		enforced := gauge("rule_state", `family="`+string(v.family)+`"`, `layer="route"`, `state="enforced"`)
		eventually(t, "the route layer is said to be enforced", func() bool { return a.metric(enforced) == 1 })
	}
	eventually(t, "each interface counts once", func() bool {
		return a.metric(covered) == 1 && a.metric(gauge("interfaces", `coverage="route"`)) == 2 && a.metric(uncovered) == 0
	})
	if code, stdout, _ := n.guard("check"); code != 0 || !strings.Contains(stdout, "route ipv6     enforced") || !strings.Contains(stdout, "0 not covered") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	eventually(t, "it is protected by both", func() bool {
		return a.metric("imds_guard_degraded") == 0 && a.metric("imds_guard_protected") == 1
	})
	if n := a.log.Count("no rule covers"); n != 0 {
		t.Errorf("%d lines about interfaces without a rule", n)
	}
	a.signal(syscall.SIGTERM)
	<-a.done
	n.mustBeBlocked(variants[0])
	code, stdout, stderr := n.guard("cleanup")
	if code != 0 || !strings.Contains(stdout, "removed the blackhole route, the policy rule, the sink, the route into the sink (ipv6, route)") {
		t.Errorf("cleanup ends with %d and says\n%s%s", code, stdout, stderr)
	}
	if after := state(); after != before {
		t.Errorf("the node has\n%sand had\n%s", after, before)
	}
	if !n.served(variants[0]) || !n.served(variants[1]) {
		t.Error("after cleanup the pod is not served")
	}
}

// Each piece that goes is put back by a notification, without a resync; meanwhile the node is protected by the other layer.
func TestLostPiecesOfTheRoute(t *testing.T) {
	t.Parallel()
	n, _ := bothLayers(t)
	a := n.startReady("--backend", "nft", "--resync-period", noResync)
	eventually(t, "both layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	for _, f := range []struct {
		family imds.Family
		ip     string
	}{{imds.IPv4, "ip -4"}, {imds.IPv6, "ip -6"}} {
		sink := map[imds.Family]string{imds.IPv4: "imds-guard4", imds.IPv6: "imds-guard6"}[f.family]
		whole := func() bool {
			out := n.sh("%s rule; %s route show table 169254; ip link show %s || true", f.ip, f.ip, sink)
			return strings.Contains(out, "iif lo lookup 169254") && strings.Contains(out, "blackhole") &&
				strings.Contains(out, "dev "+sink) && strings.Contains(out, ",UP,")
		}
		for i, loss := range []string{
			f.ip + " rule del pref 0 not iif lo lookup 169254",
			f.ip + " route flush table 169254",
			"ip link del " + sink,
			"ip link set " + sink + " down",
		} {
			n.sh("%s", loss)
			eventually(t, "after "+loss+" all is back", whole)
			series := gauge("drift_total", `family="`+string(f.family)+`"`, `layer="route"`, `reason="missing"`)
			eventually(t, "after "+loss+" it is counted", func() bool { return a.metric(series) >= float64(i+1) })
		}
	}
	eventually(t, "it is protected", func() bool { return a.metric("imds_guard_protected") == 1 && a.ready() })
}

// A layer that is not in force while another one is makes the node degraded, and nothing worse.
func TestDegraded(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.layers = rules.LayerName + "," + route.LayerName
	n.sh("ip rule add pref 0 iif %s lookup main", n.pod.Ifname) // before ours, for good
	a := n.startReady("--backend", "nft")
	eventually(t, "it is degraded", func() bool { return a.metric("imds_guard_degraded") == 1 })
	eventually(t, "it is protected all the same", func() bool { return a.metric("imds_guard_protected") == 1 })
	code, stdout, _ := n.guard("check")
	if code != 0 || !strings.Contains(stdout, "degraded       true") || !strings.Contains(stdout, "shadowed: the policy rule") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	n.mustBeBlocked(variants[0])
	n.sh("ip rule del pref 0 iif %s lookup main", n.pod.Ifname)
	eventually(t, "it is degraded no more", func() bool { return a.metric("imds_guard_degraded") == 0 })
}

// Without any iptables the route layer guards alone; that the other one is not supported is logged once.
func TestWithoutIptables(t *testing.T) {
	t.Parallel()
	n, others := bothLayers(t)
	a := n.startWith([]string{"PATH=/nonexistent"}, "--resync-period", "100ms")
	eventually(t, "it is ready", a.ready)
	for _, v := range variants[:2] {
		same := *n
		for _, same.pod = range append(others, n.pod) {
			same.mustBeBlocked(v)
		}
		eventually(t, "iptables is said to be unsupported", func() bool { return a.state(v, layer.Unsupported) })
	}
	eventually(t, "a layer that the node can't have makes it not degraded", func() bool { return a.metric("imds_guard_degraded") == 0 })
	a.awaitLooks(variants[0], 5)
	if got := a.log.Count("does not support the layer", "layer=iptables", "family=ipv4", "none of iptables-nft, iptables-legacy is in PATH"); got != 1 {
		t.Errorf("%d lines say so", got)
	}
	a.kill()
	n.layers = rules.LayerName
	alone := n.startWith([]string{"PATH=/nonexistent"})
	<-alone.done
	if code := alone.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("with that layer alone it ends with %d", code)
	}
}

// With the route layer alone no rule is written, and pods are kept away all the same.
func TestRouteAlone(t *testing.T) {
	t.Parallel()
	n, _ := bothLayers(t)
	n.layers = route.LayerName
	n.startReady()
	for _, v := range variants[:2] {
		n.mustBeBlocked(v)
	}
	for _, v := range variants {
		if list := n.forward(v); slices.ContainsFunc(list, func(l string) bool { return strings.Contains(l, v.address()) }) {
			t.Errorf("%s: %q", v, list)
		}
	}
}

// An answer by REJECT comes as it does without the route: packets cross FORWARD on their way into the sink.
func TestRejectBeforeTheSink(t *testing.T) {
	t.Parallel()
	n, _ := bothLayers(t)
	n.startReady("--backend", "nft", "--verdict", "reject")
	for _, v := range variants[:2] {
		ctx, cancel := context.WithTimeout(context.Background(), deadline)
		defer cancel()
		if _, err := n.pod.Get(ctx, v.url()); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("%s: %v", v, err)
		}
	}
}

// vpcCNI is the policy routing of the VPC CNI for a pod with addresses of a second network interface, and for one with security
// groups of its own, by the priorities of amazon-vpc-cni-k8s (pkg/networkutils/network.go, pkg/sgpp). Its tables lead to the
// endpoint as the main one does.
const vpcCNI = `
for f in 4 6; do
  case $f in 4) pod=$POD4 gateway=10.0.0.1 ;; 6) pod=$POD6 gateway=2001:db8::1 ;; esac
  for table in 2 101; do ip -$f route add default via $gateway dev eth0 table $table; ip -$f route add $pod dev $POD table $table; done
  ip -$f rule add pref 10 iif $VLAN lookup 101
  ip -$f rule add pref 10 iif eth0 lookup main
  ip -$f rule add pref 20 lookup local
  ip -$f rule add pref 512 to $pod lookup main
  ip -$f rule add pref 1024 fwmark 0x80/0x80 lookup main
  ip -$f rule add pref 1535 not to 10.0.0.0/8 from $pod lookup main 2>/dev/null || ip -$f rule add pref 1535 from $pod lookup main
  ip -$f rule add pref 1536 from $pod lookup 2
done
iptables-nft -w -t mangle -A PREROUTING -i eth0 -j CONNMARK --set-xmark 0x80/0x80
iptables-nft -w -t mangle -A PREROUTING -i $POD -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80`

// The VPC CNI's policy rules and ours stand beside each other, whichever came first: pods are kept from the endpoint alone, and
// cleanup leaves its rules and tables as they were.
func TestBesideTheVPCCNI(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"the CNI", "the guard"} {
		t.Run(strings.ReplaceAll(first, " ", "_"), func(t *testing.T) {
			t.Parallel()
			n, others := bothLayers(t)
			n.layers = route.LayerName
			cni := strings.NewReplacer("$POD4", n.pod.IPv4.String(), "$POD6", n.pod.IPv6.String(), "$POD", n.pod.Ifname,
				"$VLAN", others[0].Ifname).Replace(vpcCNI)
			routing := func() string {
				return n.sh("for f in 4 6; do ip -$f rule; ip -$f route show table all | grep -v ^multicast | sort; done; nft -s list ruleset")
			}
			var before string
			setUp := func() { n.sh("%s", cni) }
			if first == "the CNI" {
				setUp()
				for _, v := range variants[:2] {
					if !n.served(v) {
						t.Fatalf("%s: beside the CNI alone the pod is not served", v.family)
					}
				}
				before = routing()
			}
			a := n.startReady()
			if first == "the guard" {
				setUp()
			}
			ctx, cancel := context.WithTimeout(context.Background(), deadline)
			defer cancel()
			same := *n
			for _, same.pod = range append(others, n.pod) {
				for _, v := range variants[:2] {
					same.mustBeBlocked(v)
				}
				for _, address := range append([]string{testnode.Elsewhere4, testnode.Elsewhere6}, testnode.Neighbours...) {
					if _, err := same.pod.Get(ctx, "http://"+net.JoinHostPort(address, "80")+"/"); err != nil {
						t.Errorf("from %s to neighbour %s: %v", same.pod.Ifname, address, err)
					}
				}
			}
			for _, v := range variants[:2] {
				if _, err := n.Host().Get(ctx, v.url()); err != nil {
					t.Errorf("the node itself is not served: %v", err)
				}
			}
			eventually(t, "beside the CNI's rules the layer is in force", func() bool { return a.ready() && a.metric("imds_guard_degraded") == 0 })
			a.kill()
			if code, _, stderr := n.guard("cleanup"); code != 0 {
				t.Fatalf("cleanup ends with %d: %s", code, stderr)
			}
			after := routing()
			if first == "the CNI" && after != before {
				t.Errorf("after cleanup the node has\n%sand had\n%s", after, before)
			}
			for _, v := range variants[:2] {
				if !n.served(v) {
					t.Errorf("%s: after cleanup the pod is not served", v.family)
				}
			}
		})
	}
}

//go:build kernels

package agent

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// What needs kernel modules that the machine of `make test` may not have. test/kernels/run.sh runs these.

// kernelPaths are closed: a pod's interface may be in a VRF or a bond.
func kernelPaths() (list []path) {
	for _, f := range imds.Families {
		ip := map[imds.Family]string{imds.IPv4: "ip -4", imds.IPv6: "ip -6"}[f]
		vrf := strings.NewReplacer("$IP", ip, "$LINK", podLink).Replace(`
			modprobe vrf
			ip link add vrf0 type vrf table 100; ip link set vrf0 up
			ip link set $LINK master vrf0
			$IP route replace $POD dev $LINK table 100; $IP route replace $POD dev $LINK
			$IP route add table 100 $($IP route show default | sed 's/ proto.*//; s/ metric.*//')`)
		bond := strings.NewReplacer("$IP", ip, "$LINK", podLink).Replace(`
			modprobe bonding max_bonds=0
			ip link add bond0 type bond mode active-backup miimon 100
			ip link set $LINK down; ip link set $LINK master bond0; ip link set bond0 up
			$IP route replace $POD dev bond0`)
		list = append(list,
			path{"a VRF", f, vrf, endpoint("tcp", 10, 80)(f)},
			path{"a bond", f, bond, endpoint("tcp", 10, 80)(f)},
		)
	}
	return list
}

func TestPathsOfTheKernel(t *testing.T) { tryPaths(t, kernelPaths(), closed) }

// IPVS sends on by OUTPUT.
func TestOpenPathsOfTheKernel(t *testing.T) {
	tryPaths(t, []path{
		{
			"a Service of IPVS", imds.IPv4,
			"modprobe ip_vs; modprobe ip_vs_rr; echo 1 > /proc/sys/net/ipv4/vs/conntrack; " +
				"ip link add ipvs0 type dummy; ip addr add " + service4 + "/32 dev ipvs0; " +
				"ipvsadm -A -t " + service4 + ":80 -s rr; ipvsadm -a -t " + service4 + ":80 -r " + testnode.IMDSv4 + ":80 -m",
			of("tcp", 10, service4, service6, 80)(imds.IPv4),
		},
	}, open)
}

// An ipvlan in mode L3 sends as if its packets were the node's own.
func TestBypassPathsOfTheKernel(t *testing.T) {
	tryPaths(t, []path{
		{
			"an ipvlan in mode L3", imds.IPv4,
			`modprobe ipvlan; ip link add iv0 link eth0 type ipvlan mode l3; ip link set iv0 netns "$NETNS"`,
			func(n *node) error {
				script := "ip addr replace 10.0.0.99/24 dev iv0; ip link set iv0 up; ip route replace 169.254.169.254 dev iv0"
				out, err := n.pod.Command(t.Context(), "sh", "-ec", script).CombinedOutput()
				if err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return dial(n.pod.Namespace, "tcp", testnode.IMDSv4+":80", 10)
			},
		},
	}, bypassed)
}

// A connection offloaded to a flowtable no longer passes routing or FORWARD, so iptables' rules don't stop it. Installing the
// route layer does: it makes the flow's route out of date, and the kernel drops the flow (nf_flow_dst_check).
func TestOffloadedFlow(t *testing.T) {
	for layers, goesOn := range map[string]bool{rules.LayerName: true, route.LayerName: false} {
		t.Run(layers, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.layers = layers
			n.sh("modprobe nf_flow_table; modprobe nf_flow_table_inet; modprobe nft_flow_offload; "+
				"nft add table inet ft; nft 'add flowtable inet ft f { hook ingress priority 0; devices = { %s, eth0 }; }'; "+
				"nft 'add chain inet ft forward { type filter hook forward priority -10; }'; nft add rule inet ft forward counter; "+
				"nft add rule inet ft forward ip protocol tcp flow add @f", n.pod.Ifname)
			conn, err := n.pod.Dial(t.Context(), "tcp", testnode.IMDSv4+":80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ask := func() bool {
				_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
				if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
					return false
				}
				k, _ := conn.Read(make([]byte, 4096))
				return k > 0
			}
			forwarded := func() string { return n.sh("nft list chain inet ft forward | grep -o 'packets [0-9]*'") }
			eventually(t, "the flowtable has taken the connection", func() bool {
				before := forwarded()
				return ask() && forwarded() == before
			})
			a := n.start()
			eventually(t, "the layer is in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
			if got := ask(); got != goesOn {
				t.Errorf("the connection goes on: %t", got)
			}
			if n.served(variants[0]) {
				t.Error("a new connection is served")
			}
		})
	}
}

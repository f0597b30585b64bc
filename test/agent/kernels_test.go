//go:build kernels

package agent

import (
	"fmt"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
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

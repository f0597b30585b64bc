// The pieces of the layer.

package route

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// LayerName is the name of this way of enforcing, as a metric label.
const LayerName = "route"

// table is our own routing table, in each family. All routes to the endpoint in it are ours.
const table = 169254

const (
	// priority is the policy rule's. At 0 there is only the kernel's own rule for local addresses, `ip rule flush` spares what
	// is there (iproute2, ip/iprule.c), and nothing comes first: at 11, the rule that VPC CNI creates at 10 for pods with
	// security groups did (amazon-vpc-cni-k8s, pkg/networkutils/network.go).
	priority = 0
	// protocol says who made a rule or a route. systemd-networkd removes foreign ones, except the kernel's
	// (src/network/networkd-routing-policy-rule.c and networkd-route.c).
	protocol = unix.RTPROT_KERNEL
	// The metrics of the two routes: the sink's route takes precedence.
	sinkMetric, blackholeMetric = 1, 1000
	// sinkMTU is the largest that a veth can have: the node itself would answer a packet that is too big, before it crossed
	// FORWARD.
	sinkMTU = 65535
)

// piece is a part of the layer, under its name in messages, in the order in which lost pieces are put back: the first two alone
// keep packets from the endpoint.
type piece string

const (
	blackhole  piece = "the blackhole route"
	policyRule piece = "the policy rule"
	sink       piece = "the sink"
	sinkRoute  piece = "the route into the sink"
)

var pieces = []piece{blackhole, policyRule, sink, sinkRoute}

// names are the names of one family's links. Both ends have the alias, by which they are found even if they were renamed.
type names struct{ sink, end, alias string }

func namesOf(f imds.Family) names {
	name := "imds-guard" + version(f)
	return names{name, name + "-end", "imds-guard: sink of " + string(f)}
}

// version returns the family as `ip` writes it, 4 or 6.
func version(f imds.Family) string {
	if f == imds.IPv6 {
		return "6"
	}
	return "4"
}

// text returns the `ip` command that would make a piece, for people to read and compare.
func (p piece) text(f imds.Family) string {
	ip, to := "ip -"+version(f), f.Endpoint().Addr()
	switch p {
	case policyRule:
		return fmt.Sprintf("%s rule add pref %d not iif lo lookup %d protocol kernel", ip, priority, table)
	case blackhole:
		return fmt.Sprintf("%s route add blackhole %s table %d metric %d protocol kernel", ip, to, table, blackholeMetric)
	case sinkRoute:
		return fmt.Sprintf("%s route add %s dev %s table %d metric %d protocol kernel", ip, to, namesOf(f).sink, table, sinkMetric)
	}
	return fmt.Sprintf("ip link add %s up arp off mtu %d type veth peer name %s", namesOf(f).sink, sinkMTU, namesOf(f).end)
}

// Commands returns the `ip` commands that would put a family's layer in force, for people.
func Commands(f imds.Family) (list []string) {
	for _, p := range pieces {
		list = append(list, p.text(f))
	}
	return list
}

// af returns netlink's constant for the family.
func af(f imds.Family) int {
	if f == imds.IPv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

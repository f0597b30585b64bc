package ifwatch

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Two veths that look alike: the routes make them uplinks or not.
func TestWhichInterfacesAreUplinks(t *testing.T) {
	t.Parallel()
	const twoVeths = `ip link add x1 type veth peer name y1 netns pod; ip addr add 10.9.1.2/24 dev x1; ip link set x1 up
		ip link add x2 type veth peer name y2 netns pod; ip addr add 10.9.2.2/24 dev x2; ip link set x2 up
		ip addr add 2001:db8:9:1::2/64 dev x1 nodad; ip addr add 2001:db8:9:2::2/64 dev x2 nodad
		ip netns exec pod ip link set y1 up; ip netns exec pod ip link set y2 up
		`
	none, one, both := []string(nil), []string{"x2"}, []string{"x1", "x2"}
	for _, c := range []podsCase{
		{"a default route of the main table", "ip route add default via 10.9.1.1 dev x1 metric 7", one},
		{"one without a gateway", "ip route add default dev x1 metric 7", one},
		{"one by a next-hop object", "ip nexthop add id 1 via 10.9.1.1 dev x1; ip route add default nhid 1 metric 7", one},
		{"one of several next hops", "ip route add default metric 7 nexthop via 10.9.1.1 dev x1 nexthop via 10.9.2.1 dev x2", none},
		{"an IPv6 default route", "ip -6 route add default via 2001:db8:9:1::1 dev x1 metric 7", one},
		{"an IPv6 one of several next hops",
			"ip -6 route add default metric 7 nexthop via 2001:db8:9:1::1 dev x1 nexthop via 2001:db8:9:2::1 dev x2", none},
		{"the route to the endpoint alone", "ip route add 169.254.169.254 dev x1", one},
		{"the route to the IPv6 endpoint alone", "ip route add fd00:ec2::254 dev x1", one},
		{"the node's own route to the endpoint, in another table",
			"ip route add default via 10.9.1.1 dev x1 table 7; ip rule add to 169.254.169.254 table 7", one},

		{"an egress gateway in a pod: its default route is in another table",
			"ip route add default via 10.9.1.1 dev x1 table 7; ip rule add iif x2 table 7", both},
		{"the same with IPv6", "ip -6 route add default via 2001:db8:9:1::1 dev x1 table 7; ip -6 rule add iif x2 table 7", both},
		{"the same in a table with a high number", "ip route add default via 10.9.1.1 dev x1 table 10254", both},
		{"the same with several next hops",
			"ip route add default table 7 nexthop via 10.9.1.1 dev x1 nexthop via 10.9.2.1 dev x2", both},
		{"routes to no interface", `ip route add blackhole default metric 7; ip route add unreachable default metric 8
			ip -6 route add blackhole default metric 7; ip -6 route add unreachable default metric 8`, both},
		{"the endpoint is the node itself", "ip addr add 169.254.169.254/32 dev x1", both},
		{"wide routes that are no default routes", "ip route add 0.0.0.0/1 dev x2; ip route add 192.0.0.0/8 dev x1", both},
		{"no IPv6", "sysctl -qw net.ipv6.conf.all.disable_ipv6=1", both},
	} {
		c.script = twoVeths + c.script
		t.Run(c.name, c.run)
	}
}

// However the library writes it.
func TestIsDefault(t *testing.T) {
	for want, prefixes := range map[bool][]string{true: {"", "0.0.0.0/0", "::/0"}, false: {"0.0.0.0/1", "0.0.0.0/32", "::/128", "10.0.0.0/8"}} {
		for _, text := range prefixes {
			_, prefix, _ := net.ParseCIDR(text)
			if got := isDefault(netlink.Route{Dst: prefix}); got != want {
				t.Errorf("isDefault of a route to %q is %t", text, got)
			}
		}
	}
}

func TestNoteHops(t *testing.T) {
	noted := map[int]bool{}
	noteHops(netlink.Route{Type: unix.RTN_UNREACHABLE, LinkIndex: 1}, noted)
	noteHops(netlink.Route{Type: unix.RTN_BLACKHOLE}, noted)
	if len(noted) != 0 {
		t.Errorf("%v are noted", noted)
	}
}

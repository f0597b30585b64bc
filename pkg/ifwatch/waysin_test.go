// Kinds of interface that not every kernel has, in the form in which the library would list them.

package ifwatch

import (
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

// links are a node's interfaces; an index is the place in here.
type links []netlink.Link

// add adds an interface, with attributes that functions fill in, and returns its index.
func (l *links) add(kind, name string, set ...func(*netlink.LinkAttrs)) int {
	a := netlink.NewLinkAttrs()
	a.Index, a.Name = len(*l)+1, name
	for _, s := range set {
		s(&a)
	}
	*l = append(*l, &netlink.GenericLink{LinkAttrs: a, LinkType: kind})
	return a.Index
}

// bridge adds a bridge with a port, as that of a virtual machine, which doesn't say what is at its other end.
func (l *links) bridge(name string, set ...func(*netlink.LinkAttrs)) int {
	index := l.add("bridge", name, set...)
	l.add("tun", name+"-tap", under(index))
	return index
}

func peerElsewhere(a *netlink.LinkAttrs) { a.NetNsID, a.ParentIndex = 0, 2 } // eth0 in there, index 2 here is another
func isUp(a *netlink.LinkAttrs)          { a.Flags |= net.FlagUp }
func under(master int) func(*netlink.LinkAttrs) {
	return func(a *netlink.LinkAttrs) { a.MasterIndex = master }
}
func on(lower int) func(*netlink.LinkAttrs) {
	return func(a *netlink.LinkAttrs) { a.ParentIndex = lower }
}

// sorted returns the names in alphabetical order.
func sorted(interfaces []Interface) (names []string) {
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	slices.Sort(names)
	return names
}

func TestByWhichInterfacePodsComeIn(t *testing.T) {
	for name, c := range map[string]struct {
		make    func(*links)
		uplinks []int
		want    []string
	}{
		"a vrf, a bond and a team": {func(l *links) {
			for _, kind := range []string{"vrf", "bond", "team"} {
				l.add("veth", "x-"+kind, peerElsewhere, under(l.add(kind, kind+"0")))
			}
		}, nil, []string{"bond0", "team0", "vrf0"}},
		"a netkit under a vrf": {func(l *links) {
			l.add("netkit", "x1", peerElsewhere, under(l.add("vrf", "red")))
		}, nil, []string{"red"}},
		"a bond in a bridge in a vrf": {func(l *links) {
			vrf := l.add("vrf", "red")
			bridge := l.add("bridge", "br0", under(vrf))
			bond := l.add("bond", "bond0", under(bridge))
			l.add("veth", "x1", peerElsewhere, under(bond))
			l.add("veth", "x2", peerElsewhere, under(bond))
		}, nil, []string{"red"}},
		"a bridge known by its name, in a vrf": {func(l *links) {
			l.bridge("cni0", under(l.add("vrf", "red")))
		}, nil, []string{"red"}},
		"a master of another kind does not take the place": {func(l *links) {
			l.add("veth", "x1", peerElsewhere, under(l.add("openvswitch", "ovs-system")))
		}, nil, []string{"x1"}},
		"a master that is not listed": {func(l *links) {
			l.add("veth", "x1", peerElsewhere, under(99))
		}, nil, []string{"x1"}},
		"a vlan on a veth, on its bond, on its bridge": {func(l *links) {
			bridge := l.add("bridge", "br0")
			bond := l.add("bond", "bond0", under(bridge))
			veth := l.add("veth", "x1", peerElsewhere, under(bond))
			l.add("vlan", "br0.5", on(bridge))
			l.add("vlan", "bond0.5", on(bond))
			l.add("vlan", "x1.5", on(veth))
		}, nil, []string{"bond0.5", "br0", "br0.5", "x1.5"}},
		"a vlan on a bridge known by its name, and one on that": {func(l *links) {
			l.add("vlan", "inner", on(l.add("vlan", "outer", on(l.bridge("cni0")))))
		}, nil, []string{"cni0", "inner", "outer"}},
		"a vlan in a bridge of its own": {func(l *links) {
			lower := l.bridge("cni0")
			l.add("vlan", "cni0.5", on(lower), under(l.add("bridge", "tagged")))
		}, nil, []string{"cni0", "tagged"}},
		"a vlan on what does not lead to pods": {func(l *links) {
			l.add("vlan", "eth0.5", on(l.add("device", "eth0")))
			l.add("vlan", "lan.5", on(l.add("bridge", "lan")))
		}, nil, nil},
		"a vlan on an uplink": {func(l *links) {
			l.add("vlan", "eth0.5", on(l.add("veth", "eth0", peerElsewhere)))
		}, []int{1}, nil},
		"a vlan that is the uplink, on a bridge with pods": {func(l *links) {
			bridge := l.add("bridge", "br0")
			l.add("vlan", "br0.5", on(bridge))
			l.add("veth", "x1", peerElsewhere, under(bridge))
		}, []int{2}, []string{"br0"}},
		"an uplink bridge with pods, and a vlan on it": {func(l *links) {
			bridge := l.add("bridge", "br0")
			l.add("vlan", "br0.5", on(bridge))
			l.add("veth", "x1", peerElsewhere, under(bridge))
		}, []int{1}, []string{"br0.5"}},
		"an uplink in a vrf": {func(l *links) {
			l.add("veth", "eth0", peerElsewhere, under(l.add("vrf", "red")))
		}, []int{2}, nil},
		"a vrf that is the uplink": {func(l *links) {
			l.add("veth", "x1", peerElsewhere, under(l.add("vrf", "red")))
		}, []int{1}, nil},
		"a vlan whose lower interface is in another namespace": {func(l *links) {
			lower := l.bridge("cni0")
			l.add("vlan", "far.5", on(lower), func(a *netlink.LinkAttrs) { a.NetNsID = 0 })
		}, nil, []string{"cni0"}},
		"a pair on the node": {func(l *links) {
			l.add("veth", "a", on(2), under(l.add("vrf", "red")))
		}, nil, nil},
		"a circle, which a dump under way may show": {func(l *links) {
			l.add("bridge", "br0", under(2))
			l.add("bridge", "br1", under(1))
			l.add("veth", "x1", peerElsewhere, under(1))
		}, nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var l links
			c.make(&l)
			uplinks := map[int]bool{}
			for _, index := range c.uplinks {
				uplinks[index] = true
			}
			if got := sorted(podSide(l, uplinks)); !slices.Equal(got, c.want) {
				t.Errorf("pod-side are %q, want %q", got, c.want)
			}
		})
	}
}

func TestByWhichInterfaceTunnelsLetOut(t *testing.T) {
	for name, c := range map[string]struct {
		make func(*links)
		want []Interface
	}{
		"every kind that asks nobody who he is": {func(l *links) {
			for _, kind := range []string{"vxlan", "geneve", "bareudp", "gtp", "gre", "gretap", "erspan", "ipip", "ip6gre", "ip6gretap",
				"ip6erspan", "ip6tnl", "sit"} {
				l.add(kind, "t-"+kind, isUp)
			}
		}, []Interface{{"t-bareudp", "bareudp"}, {"t-erspan", "erspan"}, {"t-geneve", "geneve"}, {"t-gre", "gre"}, {"t-gretap", "gretap"},
			{"t-gtp", "gtp"}, {"t-ip6erspan", "ip6erspan"}, {"t-ip6gre", "ip6gre"}, {"t-ip6gretap", "ip6gretap"}, {"t-ip6tnl", "ip6tnl"},
			{"t-ipip", "ipip"}, {"t-sit", "sit"}, {"t-vxlan", "vxlan"}}},
		"those that want a key, and what is no tunnel": {func(l *links) {
			for _, kind := range []string{"wireguard", "vti", "vti6", "xfrm", "macsec", "ovpn", "device", "bridge", "dummy", "vlan", "tun"} {
				l.add(kind, "t-"+kind, isUp)
			}
		}, nil},
		"one that is down": {func(l *links) { l.add("ipip", "tunl0") }, nil},
		"two in a bridge": {func(l *links) {
			bridge := l.add("bridge", "br0")
			l.add("vxlan", "vx1", isUp, under(bridge))
			l.add("vxlan", "vx2", isUp, under(bridge))
		}, []Interface{{"br0", "vxlan"}}},
		"in a bridge in a vrf, with a vlan on the bridge": {func(l *links) {
			bridge := l.add("bridge", "br0", under(l.add("vrf", "red")))
			l.add("geneve", "g1", isUp, under(bridge))
			l.add("vlan", "br0.5", on(bridge))
		}, []Interface{{"br0.5", "geneve"}, {"red", "geneve"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var l links
			c.make(&l)
			got := tunnels(l)
			slices.SortFunc(got, byName)
			if !slices.Equal(got, c.want) {
				t.Errorf("tunnels let out by %v, want %v", got, c.want)
			}
			if also := podSide(l, nil); len(also) > 0 {
				t.Errorf("%v are pod-side", also)
			}
		})
	}
}

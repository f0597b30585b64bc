// Finding the interface through which packets enter FORWARD, which is not always the one that received them.

package ifwatch

import "github.com/vishvananda/netlink"

// replacing are the kinds of master that take the place of the interface that received a packet:
//   - bridge: net/bridge/br_input.c, br_pass_frame_up;
//   - bond: drivers/net/bonding/bond_main.c, bond_handle_frame;
//   - team: drivers/net/team/team_core.c, team_handle_frame;
//   - vrf: drivers/net/vrf.c, vrf_ip_rcv and vrf_ip6_rcv.
var replacing = map[string]bool{"bridge": true, "bond": true, "team": true, "vrf": true}

// stacked are the kinds of interface that take over some of the frames of another one, before its master does:
//   - vlan, those with its tag: net/core/dev.c, __netif_receive_skb_core; net/8021q/vlan_core.c, vlan_do_receive;
//   - macvlan, those to its address: drivers/net/macvlan.c, macvlan_handle_frame.
var stacked = map[string]bool{"vlan": true, "macvlan": true}

// layout is how a node's interfaces are stacked.
type layout struct {
	links map[int]netlink.Link // all, by index
	above map[int][]int        // what is stacked on an interface, by its index
}

func newLayout(links []netlink.Link) layout {
	y := layout{map[int]netlink.Link{}, map[int][]int{}}
	for _, l := range links {
		a := l.Attrs()
		y.links[a.Index] = l
		if stacked[l.Type()] && a.NetNsID < 0 { // otherwise the lower one, and the index, belong to another network namespace
			y.above[a.ParentIndex] = append(y.above[a.ParentIndex], a.Index)
		}
	}
	return y
}

// waysIn returns the interfaces through which packets received by the given interfaces enter FORWARD: the topmost master or,
// without one, the interface itself, and the same for everything stacked on any of these.
func (y layout) waysIn(from ...int) (ways []netlink.Link) {
	seen := map[int]bool{}
	for len(from) > 0 {
		index := from[0]
		from = from[1:]
		if seen[index] {
			continue
		}
		seen[index] = true
		from = append(from, y.above[index]...)
		l := y.links[index]
		if master, listed := y.links[l.Attrs().MasterIndex]; listed && replacing[master.Type()] {
			from = append(from, l.Attrs().MasterIndex)
		} else {
			ways = append(ways, l)
		}
	}
	return ways
}

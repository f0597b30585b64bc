// The interfaces on which packets come out of tunnels.
//
// A tunnel does not check who sends. Its end on the node unpacks whatever is sent to the node's address in its format, and
// the result is forwarded like any packet, but has come in by the tunnel's interface. A rule for pods' interfaces doesn't
// see that a pod sent it.

package ifwatch

import (
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// tunnelKinds are the kinds of tunnel that unpack packets without authenticating the sender, by the kernel's names
// (rtnl_link_ops.kind in net/ipv4, net/ipv6 and drivers/net). IPsec (vti, vti6, xfrm), wireguard, ovpn and macsec require a
// key.
var tunnelKinds = map[string]bool{
	"vxlan": true, "geneve": true, "bareudp": true, "gtp": true, // drivers/net
	"gre": true, "gretap": true, "erspan": true, "ipip": true, // net/ipv4/ip_gre.c, ipip.c
	"ip6gre": true, "ip6gretap": true, "ip6erspan": true, "ip6tnl": true, "sit": true, // net/ipv6/ip6_gre.c, ip6_tunnel.c, sit.c
}

// tunnels picks the interfaces through which packets from tunnels enter FORWARD. An uplink counts as well: a rule in FORWARD
// doesn't affect what the node itself sends.
func tunnels(links []netlink.Link) (found []Interface) {
	y := newLayout(links)
	for _, l := range links {
		if !tunnelKinds[l.Type()] || l.Attrs().Flags&net.FlagUp == 0 {
			continue
		}
		for _, way := range y.waysIn(l.Attrs().Index) {
			i := Interface{way.Attrs().Name, l.Type()}
			if !slices.Contains(found, i) {
				found = append(found, i)
			}
		}
	}
	return found
}

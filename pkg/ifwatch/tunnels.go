// Which interfaces let out what comes to the node in tunnels.
//
// A tunnel asks nobody who they are. Its end on the node unpacks whatever is sent to the node's address in its format, and
// what it unpacks is forwarded like any packet, but has come in by the tunnel's interface. A rule for the interfaces of
// pods doesn't see that a pod has sent it.

package ifwatch

import (
	"net"
	"slices"

	"github.com/vishvananda/netlink"
)

// tunnelKinds are the kinds of tunnel that unpack without proof of the sender, by the kernel's names (rtnl_link_ops.kind
// in net/ipv4, net/ipv6 and drivers/net). Those of IPsec (vti, vti6, xfrm), wireguard, ovpn and macsec want a key.
var tunnelKinds = map[string]bool{
	"vxlan": true, "geneve": true, "bareudp": true, "gtp": true, // drivers/net
	"gre": true, "gretap": true, "erspan": true, "ipip": true, // net/ipv4/ip_gre.c, ipip.c
	"ip6gre": true, "ip6gretap": true, "ip6erspan": true, "ip6tnl": true, "sit": true, // net/ipv6/ip6_gre.c, ip6_tunnel.c, sit.c
}

// tunnels picks the interfaces by which packets out of tunnels enter FORWARD. An uplink is one like any other: a rule in
// FORWARD doesn't touch what the node itself sends.
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

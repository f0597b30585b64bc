// Finding the uplinks: interfaces that lead out of the node and not to pods, even where they look the same (the eth0 of a node
// that is itself a container, as in kind, is a veth with its peer elsewhere).

package ifwatch

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/nldump"
	"github.com/imds-guard/imds-guard/pkg/imds"
)

// findUplinks returns the indexes of the links through which the node itself sends: by a default route of the main table, or to
// the endpoint. Other tables say nothing: an egress gateway has a default route to a pod in one.
func findUplinks() (map[int]bool, error) {
	uplinks := map[int]bool{}
	for _, f := range imds.Families {
		defaults, err := defaultRoutes(f)
		if err != nil {
			return nil, fmt.Errorf("listing default routes (%s): %w", f, err)
		}
		// Having no route is not an error: the node has no uplink of this family yet.
		toEndpoint, err := netlink.RouteGet(net.IP(f.Endpoint().Addr().AsSlice()))
		if err != nil {
			toEndpoint = nil
		}
		for _, r := range append(defaults, toEndpoint...) {
			noteHops(r, uplinks)
		}
	}
	return uplinks, nil
}

// defaultRoutes returns the default routes of the main table.
func defaultRoutes(f imds.Family) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if f == imds.IPv6 {
		family = netlink.FAMILY_V6
	}
	routes, err := nldump.Consistent(func() (defaults []netlink.Route, err error) {
		err = netlink.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE,
			func(r netlink.Route) bool {
				if isDefault(r) {
					defaults = append(defaults, r)
				}
				return true
			})
		return defaults, err
	})
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, nil // a kernel without IPv6
	}
	return routes, err
}

// isDefault recognises a default route in either form: the kernel leaves the destination out (net/ipv4/fib_semantics.c,
// fib_dump_info; net/ipv6/route.c, rt6_fill_node), and the library may fill in 0.0.0.0/0.
func isDefault(r netlink.Route) bool {
	if r.Dst == nil {
		return true
	}
	ones, _ := r.Dst.Mask.Size()
	return ones == 0
}

// noteHops adds the links that a route uses: none for one that discards or refuses.
func noteHops(r netlink.Route, links map[int]bool) {
	if r.Type != unix.RTN_UNICAST {
		return
	}
	links[r.LinkIndex] = true
	for _, hop := range r.MultiPath {
		links[hop.LinkIndex] = true
	}
}

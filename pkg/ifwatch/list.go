// Package ifwatch turns netlink into a picture of the pod-side interfaces of the node.
package ifwatch

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// List returns the pod-side interfaces of the calling thread's network namespace.
func List() ([]Interface, error) {
	links, err := consistent(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing interfaces: %w", err)
	}
	uplinks, err := findUplinks()
	if err != nil {
		return nil, err
	}
	return podSide(links, uplinks), nil
}

// findUplinks returns the indexes of the links that carry a default route, in any routing table (Amazon VPC CNI has one
// for each network interface), or the route to the endpoint.
func findUplinks() (map[int]bool, error) {
	uplinks := map[int]bool{}
	note := func(routes []netlink.Route) {
		for _, r := range routes {
			uplinks[r.LinkIndex] = true
			for _, hop := range r.MultiPath {
				uplinks[hop.LinkIndex] = true
			}
		}
	}
	for _, f := range enforce.Families {
		family := netlink.FAMILY_V4
		if f == enforce.IPv6 {
			family = netlink.FAMILY_V6
		}
		defaults, err := consistent(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Dst: nil},
				netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		})
		if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, fmt.Errorf("listing default routes (%s): %w", f, err)
		}
		note(defaults)
		// No route at all is no error: the node has no uplink of this family yet.
		if routes, err := netlink.RouteGet(net.IP(f.Endpoint().Addr().AsSlice())); err == nil {
			note(routes)
		}
	}
	return uplinks, nil
}

// consistent repeats a dump that the kernel says was changed under way, and takes the last one as it is: the change has
// its own event, which makes for the next dump.
func consistent[T any](dump func() ([]T, error)) (items []T, err error) {
	for range 3 {
		items, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, nil
}

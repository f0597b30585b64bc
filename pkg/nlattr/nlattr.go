// Package nlattr parses the attributes of netlink messages.
package nlattr

import (
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// typeMask is NLA_TYPE_MASK of linux/netlink.h.
const typeMask = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

// List parses attributes in their order.
func List(b []byte) ([]syscall.NetlinkRouteAttr, error) {
	// nl.ParseRouteAttr skips the padding of the last attribute whether it is there or not, and panics if it is not.
	padded := b
	if len(b)%4 != 0 {
		padded = make([]byte, (len(b)+3)&^3)
		copy(padded, b)
	}
	list, err := nl.ParseRouteAttr(padded)
	if err != nil {
		return nil, fmt.Errorf("parsing netlink attributes: %w", err)
	}
	return list, nil
}

// Map parses attributes and strips the flags (NLA_F_NESTED …) from their types.
func Map(b []byte) (map[uint16]syscall.NetlinkRouteAttr, error) {
	list, err := List(b)
	if err != nil {
		return nil, err
	}
	attrs := make(map[uint16]syscall.NetlinkRouteAttr, len(list))
	for _, a := range list {
		attrs[a.Attr.Type&typeMask] = a
	}
	return attrs, nil
}

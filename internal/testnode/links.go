//go:build linux

// Links, addresses, routes and sysctls of the namespaces.

package testnode

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// setSysctls sets "path/below/proc/sys=value" in the namespace.
func (ns *Namespace) setSysctls(settings ...string) error {
	return ns.doNet(func() error {
		for _, setting := range settings {
			path, value, _ := strings.Cut(setting, "=")
			if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0); err != nil {
				return fmt.Errorf("setting sysctl %s: %w", setting, err)
			}
		}
		return nil
	})
}

// withHandle runs fn with a netlink handle of the namespace.
func (ns *Namespace) withHandle(fn func(*netlink.Handle) error) error {
	var h *netlink.Handle
	err := ns.doNet(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("opening a netlink socket: %w", err)
	}
	defer h.Close()
	return fn(h)
}

// addVeth makes a veth in ns whose other end is in peer, neither of them up.
func (ns *Namespace) addVeth(name string, peer *Namespace, peerName string) error {
	return ns.withHandle(func(h *netlink.Handle) error {
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: name, TxQLen: 1000})
		veth.PeerName, veth.PeerNamespace = peerName, netlink.NsFd(int(peer.net.Fd()))
		if err := h.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding veth %s: %w", name, err)
		}
		return nil
	})
}

// deleteLink removes a link. It is not an error if there is none.
func (ns *Namespace) deleteLink(name string) error {
	return ns.withHandle(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err == nil {
			err = h.LinkDel(link)
		}
		if _, gone := errors.AsType[netlink.LinkNotFoundError](err); err != nil && !gone && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("deleting link %s: %w", name, err)
		}
		return nil
	})
}

// linkSpec is the configuration of a link.
type linkSpec struct {
	addrs    []netip.Prefix
	onLink   []netip.Prefix              // routes without a gateway
	gateways []netip.Addr                // of default routes
	neighbor net.HardwareAddr            // where given, the gateways' permanent neighbour entry
	routes   map[netip.Prefix]netip.Addr // destination: gateway
}

// permanent returns the addresses that get a permanent neighbour entry.
func (s linkSpec) permanent() []netip.Addr {
	if s.neighbor == nil {
		return nil
	}
	return s.gateways
}

// setUpLink sets a link up and configures it.
func (ns *Namespace) setUpLink(name string, spec linkSpec) error {
	return ns.withHandle(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding link %s: %w", name, err)
		}
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("setting link %s up: %w", name, err)
		}
		index := link.Attrs().Index
		for _, prefix := range spec.addrs {
			addr := &netlink.Addr{IPNet: ipNet(prefix), Flags: addrFlags(prefix.Addr())}
			if err := h.AddrAdd(link, addr); err != nil {
				return fmt.Errorf("adding address %s to %s: %w", prefix, name, err)
			}
		}
		for _, gateway := range spec.permanent() {
			neigh := &netlink.Neigh{LinkIndex: index, IP: gateway.AsSlice(), HardwareAddr: spec.neighbor, State: netlink.NUD_PERMANENT}
			if err := h.NeighAdd(neigh); err != nil {
				return fmt.Errorf("adding neighbour %s on %s: %w", gateway, name, err)
			}
		}
		for _, prefix := range spec.onLink {
			route := &netlink.Route{LinkIndex: index, Dst: ipNet(prefix), Scope: netlink.SCOPE_LINK}
			if err := h.RouteAdd(route); err != nil {
				return fmt.Errorf("adding route to %s on %s: %w", prefix, name, err)
			}
		}
		for _, gateway := range spec.gateways {
			route := &netlink.Route{LinkIndex: index, Dst: ipNet(everything(gateway)), Gw: gateway.AsSlice()}
			if err := h.RouteAdd(route); err != nil {
				return fmt.Errorf("adding default route via %s on %s: %w", gateway, name, err)
			}
		}
		for prefix, gateway := range spec.routes {
			route := &netlink.Route{LinkIndex: index, Dst: ipNet(prefix), Gw: gateway.AsSlice()}
			if err := h.RouteAdd(route); err != nil {
				return fmt.Errorf("adding route to %s via %s: %w", prefix, gateway, err)
			}
		}
		return nil
	})
}

// waitForLink waits until the link passes packets of both families. It is not enough that both ends are up: a kernel worker
// starts the queue a little later, and assigns the link-local address that neighbour discovery needs.
func (ns *Namespace) waitForLink(name string) error {
	return ns.withHandle(func(h *netlink.Handle) error {
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			link, err := h.LinkByName(name)
			if err != nil {
				return fmt.Errorf("finding link %s: %w", name, err)
			}
			addrs, err := h.AddrList(link, netlink.FAMILY_V6)
			if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // an interrupted dump is simply repeated
				return fmt.Errorf("listing the addresses of %s: %w", name, err)
			}
			if link.Attrs().OperState == netlink.OperUp {
				for _, addr := range addrs {
					if addr.Scope == int(netlink.SCOPE_LINK) && addr.Flags&unix.IFA_F_TENTATIVE == 0 {
						return nil
					}
				}
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("waiting for link %s: still %s with %d addresses", name, link.Attrs().OperState, len(addrs))
			}
		}
	})
}

// HardwareAddr returns the link's Ethernet address.
func (ns *Namespace) HardwareAddr(name string) (addr net.HardwareAddr, err error) {
	err = ns.withHandle(func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("finding link %s: %w", name, err)
		}
		addr = link.Attrs().HardwareAddr
		return nil
	})
	return addr, err
}

// addrFlags skips duplicate address detection for IPv6, which takes a second.
func addrFlags(addr netip.Addr) int {
	if addr.Is6() {
		return unix.IFA_F_NODAD
	}
	return 0
}

// everything is the destination of a default route.
func everything(like netip.Addr) netip.Prefix {
	if like.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// single is the prefix of one address.
func single(addr netip.Addr) netip.Prefix {
	return netip.PrefixFrom(addr, addr.BitLen())
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

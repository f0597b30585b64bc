// The probe's way into the node: a veth pair and a route back.

package probe

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// farName identifies the pair as ours, in whatever state it is: its far end has this name from the beginning.
const farName = "imds-guard-far"

// nobody is the hardware address that answers are sent to. It is not the far end's own, so the far end's network stack ignores
// them.
var nobody = net.HardwareAddr{0x02, 'i', 'm', 'd', 's', 0}

// way is the pair. What is sent at the far end comes in through the near one.
type way struct {
	near, far *net.Interface
	fd        int // a packet socket
}

// openWay makes a pair with a route back to an address, replacing one that was left behind.
func openWay(name string, source netip.Addr) (w *way, err error) {
	if _, err := cleanup(); err != nil {
		return nil, err
	}
	pair := netlink.NewVeth(netlink.LinkAttrs{Name: name, MTU: 1500})
	pair.PeerName = farName
	if err := netlink.LinkAdd(pair); err != nil {
		return nil, fmt.Errorf("making the interface %s: %w", name, err)
	}
	w = &way{fd: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
			w = nil
		}
	}()
	if w.near, err = net.InterfaceByName(name); err != nil {
		return w, err
	}
	if w.far, err = net.InterfaceByName(farName); err != nil {
		return w, err
	}
	// Neither end gets an address, or requests one.
	for _, end := range []*net.Interface{w.far, w.near} {
		if err := netlink.LinkSetIP6AddrGenMode(byIndex(end), nl.IN6_ADDR_GEN_MODE_NONE); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return w, fmt.Errorf("keeping %s without an address: %w", end.Name, err)
		}
	}
	if err := likePods(name, source); err != nil {
		return w, err
	}
	for _, end := range []*net.Interface{w.far, w.near} {
		if err := netlink.LinkSetUp(byIndex(end)); err != nil {
			return w, fmt.Errorf("setting %s up: %w", end.Name, err)
		}
	}
	back := &net.IPNet{IP: source.AsSlice(), Mask: net.CIDRMask(source.BitLen(), source.BitLen())}
	// Without this route rp_filter drops the packet before any layer sees it (Documentation/networking/ip-sysctl.rst).
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: w.near.Index, Dst: back, Scope: netlink.SCOPE_LINK}); err != nil {
		return w, fmt.Errorf("making a route back through %s: %w", name, err)
	}
	neigh := &netlink.Neigh{LinkIndex: w.near.Index, IP: source.AsSlice(), HardwareAddr: nobody, State: netlink.NUD_PERMANENT}
	if err := netlink.NeighSet(neigh); err != nil {
		return w, fmt.Errorf("making a neighbour on %s: %w", name, err)
	}
	if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return w, fmt.Errorf("opening a packet socket: %w", err)
	}
	// A kernel worker starts the queue later, so going through it would lose the first packet.
	if err := unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1); err != nil {
		return w, fmt.Errorf("bypassing the queue of %s: %w", farName, err)
	}
	return w, nil
}

// likePods gives an interface the same forwarding (IPv4) or disable_ipv6 (IPv6) setting as pods' interfaces, where the default
// for new ones differs. It is an error if that can't be changed.
func likePods(name string, source netip.Addr) error {
	setting, want := "/proc/sys/net/ipv4/conf/"+name+"/forwarding", "1"
	if source.Is6() {
		setting, want = "/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", "0"
	}
	value, err := os.ReadFile(setting)
	if err != nil {
		return fmt.Errorf("reading a setting of %s: %w", name, err)
	}
	if strings.TrimSpace(string(value)) == want {
		return nil
	}
	if err := os.WriteFile(setting, []byte(want), 0); err != nil {
		return fmt.Errorf("configuring %s like the pods' interfaces: %w", name, err)
	}
	return nil
}

func byIndex(i *net.Interface) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: i.Index}}
}

func (w *way) send(s segment) error {
	to := &unix.SockaddrLinklayer{Ifindex: w.far.Index, Protocol: bigEndian(s.etherType())}
	if err := unix.Sendto(w.fd, s.frame(w.far.HardwareAddr, w.near.HardwareAddr), 0, to); err != nil {
		return fmt.Errorf("sending through %s: %w", farName, err)
	}
	return nil
}

func (w *way) has(index int) bool { return index == w.near.Index || index == w.far.Index }

// close removes the pair, and the route with it.
func (w *way) close() error {
	if w.fd >= 0 {
		unix.Close(w.fd)
	}
	_, err := cleanup()
	return err
}

// Cleanup removes the pair that a killed probe left behind, if there is one. It waits for a probe that is still running.
func Cleanup() (removed bool, err error) {
	unlock, err := lock()
	if err != nil {
		return false, err
	}
	defer unlock()
	return cleanup()
}

// cleanup is Cleanup for a caller that holds the lock. A link with the far end's name that is not a veth belongs to somebody
// else.
func cleanup() (removed bool, err error) {
	l, err := netlink.LinkByName(farName)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none || err == nil && l.Type() != "veth" {
		return false, nil
	}
	if err == nil {
		err = netlink.LinkDel(l)
	}
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("removing the probe's interfaces: %w", err)
	}
	return true, nil
}

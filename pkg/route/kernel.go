// What the layer reads from its network namespace and changes in it, by rtnetlink.

package route

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/nlattr"
)

// kernel is the only part of a node that a Layer sees, for one family. Its errors are the kernel's.
type kernel interface {
	// Rules returns the policy rules, in the order in which they are evaluated.
	Rules() ([]rule, error)
	// Routes returns the routes of a table: those of one type or, with 0, all of them.
	Routes(table uint32, kind byte) ([]routeEntry, error)
	// Sink returns the link with our sink's name. It is not an error if there is none.
	Sink() (link, error)

	// Make makes a missing piece. index is the sink's, for the route into it.
	Make(p piece, index int) error
	// DeleteRule and DeleteRoute remove what was listed, DeleteSink removes the sink whatever has become of it. It is not an
	// error if there is none.
	DeleteRule(r rule) error
	DeleteRoute(r routeEntry) error
	// DeleteSink returns how many of the links it deleted had another name.
	DeleteSink() (others int, err error)
}

// link is what matters about a link with our sink's name.
type link struct {
	index   int  // 0: there is none
	foreign bool // it belongs to somebody else
	// unfit says why it can't serve as the sink; empty if it can.
	unfit string
	// disabled: it accepts no packets of this family (sysctl disable_ipv6).
	disabled bool
	dropped  uint64 // packets, since it was made
}

// ours reports whether the link may be the sink that we made, in whatever state it is.
func (l link) ours() bool { return l.index != 0 && !l.foreign }

// fit reports whether the link works as the sink.
func (l link) fit() bool { return l.index != 0 && l.unfit == "" }

// node is the kernel of this network namespace. It keeps its sockets open.
type node struct {
	family imds.Family
	links  *netlink.Handle
	dumps  map[int]*nl.SocketHandle // with strict checking, so that the kernel does not dump all of the node's tables
}

// askTimeout bounds one answer of the kernel, which comes at once unless something is badly wrong.
const askTimeout = 5 * time.Second

func (n *node) open() error {
	if n.links != nil {
		return nil
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("opening a routing socket: %w", err)
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		s.Close()
		return fmt.Errorf("opening a routing socket: %w", err)
	}
	timeout := unix.NsecToTimeval(askTimeout.Nanoseconds())
	err = errors.Join(
		unix.SetsockoptInt(s.GetFd(), unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1),
		s.SetReceiveTimeout(&timeout), s.SetSendTimeout(&timeout), links.SetSocketTimeout(askTimeout),
	)
	if err != nil {
		s.Close()
		links.Close()
		return fmt.Errorf("setting up a routing socket: %w", err)
	}
	n.links, n.dumps = links, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	return nil
}

// close closes the sockets; the next request opens new ones.
func (n *node) close() {
	if n.links != nil {
		n.links.Close()
		n.dumps[unix.NETLINK_ROUTE].Close()
	}
	n.links, n.dumps = nil, nil
}

// dumpTries is how often to repeat a dump that was interrupted by a change.
const dumpTries = 3

// dump reads all objects of a kind. After an error the sockets are closed, since a part of the answer may be left in one.
func (n *node) dump(message int, answer uint16, table uint32, kind byte) (found [][]byte, err error) {
	for range dumpTries {
		if err = n.open(); err != nil {
			return nil, err
		}
		req := nl.NewNetlinkRequest(message, unix.NLM_F_DUMP)
		req.Sockets = n.dumps
		req.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{Family: uint8(af(n.family)), Type: kind}})
		if table != 0 {
			req.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(table)))
		}
		if found, err = req.Execute(unix.NETLINK_ROUTE, answer); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	if err != nil {
		n.close()
	}
	return found, err
}

// Rules implements kernel.
func (n *node) Rules() (rules []rule, err error) {
	messages, err := n.dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, 0, 0)
	if err != nil {
		return nil, fmt.Errorf("listing the policy rules: %w", err)
	}
	for _, m := range messages {
		r, err := parseRule(n.family, m)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Routes implements kernel. A table into which no route was ever put does not exist (net/ipv4/fib_frontend.c, inet_dump_fib).
func (n *node) Routes(table uint32, kind byte) (routes []routeEntry, err error) {
	messages, err := n.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, table, kind)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing the routes of table %d: %w", table, err)
	}
	for _, m := range messages {
		r, err := parseRoute(m)
		if err != nil {
			return nil, err
		}
		if r.table == table { // otherwise the kernel has not understood the request
			routes = append(routes, r)
		}
	}
	return routes, nil
}

// Sink implements kernel.
func (n *node) Sink() (link, error) {
	if err := n.open(); err != nil {
		return link{}, err
	}
	l, err := n.links.LinkByName(namesOf(n.family).sink)
	if _, gone := errors.AsType[netlink.LinkNotFoundError](err); gone {
		return link{}, nil
	}
	if err != nil {
		n.close()
		return link{}, fmt.Errorf("reading the link %s: %w", namesOf(n.family).sink, err)
	}
	a := l.Attrs()
	found := link{index: a.Index, unfit: unfit(l), disabled: disabled(n.family, a.Name)}
	if why := foreign(l, namesOf(n.family).sink); why != "" {
		found.foreign, found.unfit = true, why
	}
	if a.Statistics != nil {
		found.dropped = a.Statistics.TxDropped
	}
	return found, nil
}

// foreign says why a link found under one of our names belongs to somebody else.
func foreign(l netlink.Link, name string) string {
	switch {
	case l.Attrs().Name != name:
		return fmt.Sprintf("it is an alternative name of %s, which is not ours", l.Attrs().Name)
	case l.Type() != "veth":
		return fmt.Sprintf("it is a %s and not ours", l.Type())
	}
	return ""
}

// unfit says why a link does not drop every packet that is routed into it.
func unfit(l netlink.Link) string {
	a := l.Attrs()
	switch {
	case a.RawFlags&unix.IFF_UP == 0:
		return "it is down"
	case a.RawFlags&unix.IFF_NOARP == 0:
		return "it resolves neighbours (ARP is on)"
	case a.RawFlags&unix.IFF_LOWER_UP != 0:
		return "its other end is up"
	case a.NetNsID >= 0:
		return "its other end is in another network namespace"
	case a.MasterIndex != 0:
		return "it has a master"
	case a.MTU != sinkMTU: // below 1280 it has no IPv6 either
		return fmt.Sprintf("its MTU is %d", a.MTU)
	}
	return ""
}

// disabled reports whether a link accepts no IPv6 packets, or has no IPv6 at all. For a link that has just disappeared the
// answer doesn't matter.
func disabled(f imds.Family, name string) bool {
	if f != imds.IPv6 {
		return false
	}
	value, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat("/proc/sys/net/ipv6/conf") // what can't be seen says nothing
		return err == nil
	}
	return err == nil && strings.TrimSpace(string(value)) != "0"
}

// Make implements kernel. It is an error if the piece exists already: either another process has just made it, or it is not
// recognised, and making another one each time would never end. (When the kernel compares two rules it ignores `not`.)
func (n *node) Make(p piece, index int) (err error) {
	if err := n.open(); err != nil {
		return err
	}
	switch p {
	case policyRule:
		err = n.makeRule()
	case blackhole, sinkRoute:
		err = n.links.RouteAdd(n.route(p, index))
	case sink:
		err = n.makeSink()
	}
	if err != nil {
		return fmt.Errorf("making %s: %w", p, err)
	}
	return nil
}

// makeRule also makes sure that the rule does not apply to the node's own packets: it would if the loopback interface had
// another name.
func (n *node) makeRule() error {
	lo, err := n.links.LinkByIndex(loopback)
	if err != nil {
		return fmt.Errorf("reading the loopback interface: %w", err)
	}
	if name := lo.Attrs().Name; name != "lo" {
		return fmt.Errorf("the loopback interface is called %s; rename it to lo", name)
	}
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = af(n.family), priority, protocol
	r.IifName, r.Invert, r.Table = "lo", true, table
	return n.links.RuleAdd(r)
}

func (n *node) route(p piece, index int) *netlink.Route {
	to := n.family.Endpoint()
	r := &netlink.Route{
		Family: af(n.family), Table: table, Protocol: protocol, Type: unix.RTN_UNICAST, LinkIndex: index, Priority: sinkMetric,
		Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(to.Bits(), to.Bits())},
	}
	switch {
	case p == blackhole:
		r.Type, r.LinkIndex, r.Priority = unix.RTN_BLACKHOLE, 0, blackholeMetric
	case n.family == imds.IPv4:
		r.Scope = netlink.SCOPE_LINK
	}
	return r
}

// makeSink makes the pair and sets one end up. Without an address, the sink sends nothing of its own that would be counted as
// pods' packets.
func (n *node) makeSink() error {
	pair := namesOf(n.family)
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: pair.sink, MTU: sinkMTU})
	veth.PeerName = pair.end
	if err := n.links.LinkAdd(veth); err != nil {
		return fmt.Errorf("adding %s with its other end %s: %w", pair.sink, pair.end, err)
	}
	for _, name := range []string{pair.sink, pair.end} {
		l, err := n.links.LinkByName(name)
		if err == nil {
			err = n.links.LinkSetAlias(l, pair.alias)
		}
		if err != nil {
			return fmt.Errorf("giving %s its alias: %w", name, err)
		}
	}
	if err := n.links.LinkSetARPOff(veth); err != nil {
		return fmt.Errorf("setting NOARP: %w", err)
	}
	const addrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE
	if err := n.links.LinkSetIP6AddrGenMode(veth, addrGenModeNone); err != nil && imds.IPv6.Present() {
		return fmt.Errorf("keeping IPv6 addresses off: %w", err)
	}
	if err := n.links.LinkSetUp(veth); err != nil {
		return fmt.Errorf("setting it up: %w", err)
	}
	return nil
}

// DeleteRule implements kernel, using the kernel's own description of the rule. If several match, the kernel deletes the first.
func (n *node) DeleteRule(r rule) error {
	if err := n.resend(unix.RTM_DELRULE, r.message, nl.FRA_PAD); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("deleting %s: %w", r, err)
	}
	return nil
}

// DeleteRoute implements kernel, using the kernel's own description of the route. For a route with a nexthop object, the kernel
// allows no other nexthop attributes (net/ipv4/fib_semantics.c, fib_nh_match).
func (n *node) DeleteRoute(r routeEntry) error {
	without := []uint16{unix.RTA_CACHEINFO}
	if r.object {
		without = append(without, unix.RTA_OIF, unix.RTA_GATEWAY, unix.RTA_VIA, unix.RTA_MULTIPATH)
	}
	message := slices.Clone(r.message)
	clear(message[8:unix.SizeofRtMsg]) // the flags are the state of the nexthop
	if err := n.resend(unix.RTM_DELROUTE, message, without...); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("deleting %s: %w", r, err)
	}
	return nil
}

// resend sends the kernel's description of an object back to it, without some attributes.
func (n *node) resend(message int, object []byte, without ...uint16) error {
	if err := n.open(); err != nil {
		return err
	}
	attrs, err := nlattr.List(object[unix.SizeofRtMsg:])
	if err != nil {
		return err
	}
	req := nl.NewNetlinkRequest(message, unix.NLM_F_ACK)
	req.Sockets = n.dumps
	req.AddRawData(object[:unix.SizeofRtMsg])
	for _, a := range attrs {
		if !slices.Contains(without, a.Attr.Type) {
			req.AddRawData(nl.NewRtAttr(int(a.Attr.Type), a.Value).Serialize())
		}
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// DeleteSink implements kernel. Links with our alias under another name are deleted as well. Deleting one end deletes both.
func (n *node) DeleteSink() (others int, err error) {
	if err := n.open(); err != nil {
		return 0, err
	}
	pair := namesOf(n.family)
	list, err := n.links.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // the next repair finds what an interrupted dump missed
		return 0, fmt.Errorf("listing links: %w", err)
	}
	for _, l := range list {
		if a := l.Attrs(); l.Type() != "veth" || a.Name != pair.sink && a.Alias != pair.alias {
			continue
		}
		err := n.links.LinkDel(l)
		if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EINVAL) { // it was deleted with its other end
			return others, fmt.Errorf("deleting the link %s: %w", l.Attrs().Name, err)
		}
		if name := l.Attrs().Name; err == nil && name != pair.sink && name != pair.end {
			others++
		}
	}
	return others, nil
}

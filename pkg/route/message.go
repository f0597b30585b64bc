// Parsing the kernel's policy rules and routes, attribute by attribute. The library's types omit a rule's action, and
// attributes that it does not know; a rule that differs from ours only in one of these would be mistaken for ours.

package route

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/nlattr"
)

// header is struct rtmsg and struct fib_rule_hdr, which have the same layout (include/uapi/linux/rtnetlink.h and fib_rules.h).
type header struct {
	family, dstBits, srcBits, tos byte
	kind                          byte // a route's type, or a rule's action
	flags                         uint32
	to                            netip.Prefix // the destination: FRA_DST and RTA_DST are the same attribute
	attrs                         map[uint16]syscall.NetlinkRouteAttr
}

func parse(message []byte) (header, error) {
	if len(message) < unix.SizeofRtMsg {
		return header{}, fmt.Errorf("parsing a message of %d bytes: it is too short", len(message))
	}
	attrs, err := nlattr.Map(message[unix.SizeofRtMsg:])
	if err != nil {
		return header{}, err
	}
	h := header{
		family: message[0], dstBits: message[1], srcBits: message[2], tos: message[3], kind: message[7],
		flags: binary.NativeEndian.Uint32(message[8:]), attrs: attrs,
	}
	h.to, err = h.destination()
	return h, err
}

// number returns a 32-bit attribute, 0 if it is missing.
func (h header) number(attr uint16) uint32 {
	if v := h.attrs[attr].Value; len(v) >= 4 {
		return binary.NativeEndian.Uint32(v)
	}
	return 0
}

// only reports whether there are no attributes other than these.
func (h header) only(known ...uint16) bool {
	left := len(h.attrs)
	for _, attr := range known {
		if _, there := h.attrs[attr]; there {
			left--
		}
	}
	return left == 0
}

// destination returns the destination, which is the default one if none is given.
func (h header) destination() (netip.Prefix, error) {
	raw, there := h.attrs[unix.RTA_DST]
	addr, ok := netip.AddrFromSlice(raw.Value)
	switch {
	case !there && h.family == unix.AF_INET6:
		addr = netip.IPv6Unspecified()
	case !there:
		addr = netip.IPv4Unspecified()
	case !ok:
		return netip.Prefix{}, fmt.Errorf("parsing a destination of %d bytes", len(raw.Value))
	}
	return addr.Prefix(int(h.dstBits))
}

// rule is what matters about a policy rule.
type rule struct {
	ours bool
	// stray: it leads into our table, but is not ours.
	stray bool
	// diverts: it may lead a packet that the node forwards to the endpoint somewhere other than the next rule, without stopping
	// it.
	diverts  bool
	priority uint32
	text     string // for people
	message  []byte // as received from the kernel
}

// String describes the rule for use in a sentence.
func (r rule) String() string { return fmt.Sprintf("the policy rule %q", r.text) }

// notSuppressed is the kernel's value for "no prefix length is suppressed" (net/core/fib_rules.c).
const notSuppressed = 0xffffffff

func parseRule(f imds.Family, message []byte) (rule, error) {
	h, err := parse(message)
	if err != nil {
		return rule{}, err
	}
	iif := unix.ByteSliceToString(h.attrs[nl.FRA_IIFNAME].Value)
	leadsTo, inverted := h.number(nl.FRA_TABLE), h.flags&netlink.FibRuleInvert != 0
	_, suppresses := h.attrs[nl.FRA_SUPPRESS_PREFIXLEN]
	suppresses = suppresses && h.number(nl.FRA_SUPPRESS_PREFIXLEN) != notSuppressed
	r := rule{priority: h.number(nl.FRA_PRIORITY), text: h.ruleText(iif, leadsTo, inverted), message: message}
	r.ours = h.kind == nl.FR_ACT_TO_TBL && h.flags == netlink.FibRuleInvert && iif == "lo" && leadsTo == table &&
		r.priority == priority && h.dstBits == 0 && h.srcBits == 0 && h.tos == 0 && !suppresses &&
		h.only(nl.FRA_TABLE, nl.FRA_IIFNAME, nl.FRA_PRIORITY, nl.FRA_PROTOCOL, nl.FRA_SUPPRESS_PREFIXLEN, nl.FRA_PAD)
	passes := !inverted && (iif == "lo" || !h.to.Contains(f.Endpoint().Addr()))
	switch h.kind {
	case nl.FR_ACT_BLACKHOLE, nl.FR_ACT_UNREACHABLE, nl.FR_ACT_PROHIBIT, nl.FR_ACT_NOP:
		passes = true
	case nl.FR_ACT_TO_TBL:
		passes = passes || leadsTo == unix.RT_TABLE_LOCAL // the contents of that table are checked separately
	}
	r.stray = !r.ours && h.kind == nl.FR_ACT_TO_TBL && leadsTo == table
	r.diverts = !r.ours && !r.stray && !passes
	return r, nil
}

// ruleText is close to what `ip rule` prints.
func (h header) ruleText(iif string, leadsTo uint32, inverted bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", h.number(nl.FRA_PRIORITY))
	if inverted {
		b.WriteString(" not")
	}
	if h.dstBits > 0 {
		fmt.Fprintf(&b, " to %s", h.to)
	}
	if iif != "" {
		fmt.Fprintf(&b, " iif %s", iif)
	}
	switch h.kind {
	case nl.FR_ACT_TO_TBL:
		fmt.Fprintf(&b, " lookup %d", leadsTo)
	case nl.FR_ACT_GOTO:
		fmt.Fprintf(&b, " goto %d", h.number(nl.FRA_GOTO))
	default:
		fmt.Fprintf(&b, " action %d", h.kind)
	}
	return b.String()
}

// routeEntry is what matters about a route.
type routeEntry struct {
	table  uint32
	kind   byte
	to     netip.Prefix
	metric uint32
	link   int // the interface that it leads to, 0 for none
	// plain: it has no other attributes, so it applies to every packet to its destination.
	plain bool
	// object: it leads to a nexthop object.
	object bool
	// dead: lookups skip it while its interface has no carrier (sysctl ignore_routes_with_linkdown).
	dead    bool
	message []byte // as received from the kernel
}

func parseRoute(message []byte) (routeEntry, error) {
	h, err := parse(message)
	if err != nil {
		return routeEntry{}, err
	}
	return routeEntry{
		table: h.number(unix.RTA_TABLE), kind: h.kind, to: h.to,
		metric: h.number(unix.RTA_PRIORITY), link: int(h.number(unix.RTA_OIF)),
		plain: h.srcBits == 0 && h.tos == 0 &&
			h.only(unix.RTA_TABLE, unix.RTA_DST, unix.RTA_PRIORITY, unix.RTA_OIF, unix.RTA_PREF, unix.RTA_CACHEINFO),
		object: h.number(rtaNHID) != 0, dead: h.flags&unix.RTNH_F_DEAD != 0, message: message,
	}, nil
}

// rtaNHID is RTA_NH_ID of linux/rtnetlink.h.
const rtaNHID = 30

// String describes the route for use in a sentence, close to what `ip route` prints.
func (r routeEntry) String() string {
	kinds := map[byte]string{unix.RTN_UNICAST: "", unix.RTN_BLACKHOLE: "blackhole "}
	kind, known := kinds[r.kind]
	if !known {
		kind = fmt.Sprintf("type %d ", r.kind)
	}
	return fmt.Sprintf("the route %s%s table %d metric %d link %d", kind, r.to, r.table, r.metric, r.link)
}

// concerns returns the families whose layers a notification may affect: one about a rule, a route in a relevant table, or a
// link with one of the given names or indexes.
func concerns(m syscall.NetlinkMessage, links map[int32]imds.Family) []imds.Family {
	switch m.Header.Type {
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		return familyOf(m.Data)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		r, err := parseRoute(m.Data)
		if err == nil && r.table != table && (r.table != unix.RT_TABLE_LOCAL || r.kind != unix.RTN_UNICAST) {
			return nil
		}
		return familyOf(m.Data)
	case unix.RTM_NEWLINK:
		return linkOf(m.Data, links)
	case unix.RTM_DELLINK:
		defer delete(links, linkIndex(m.Data))
		return linkOf(m.Data, links)
	}
	return nil
}

func familyOf(message []byte) []imds.Family {
	for _, f := range imds.Families {
		if len(message) > 0 && int(message[0]) == af(f) {
			return []imds.Family{f}
		}
	}
	return nil
}

// loopback is the index of lo in every network namespace (net/core/dev.c). The policy rule names it, and the kernel attaches
// IPv6's blackhole route to it; if net.ipv6.route.skip_notify_on_dev_down is set, that route disappears without a notification
// of its own.
const loopback = 1

// linkIndex returns ifi_index of struct ifinfomsg, 0 if there is none.
func linkIndex(message []byte) int32 {
	if len(message) < unix.SizeofIfInfomsg {
		return 0
	}
	return int32(binary.NativeEndian.Uint32(message[4:]))
}

// linkOf remembers the index of a link with one of our names, so that it is recognised even after it was renamed.
func linkOf(message []byte, links map[int32]imds.Family) []imds.Family {
	index := linkIndex(message)
	switch index {
	case 0:
		return nil
	case loopback:
		return imds.Families
	}
	attrs, err := nlattr.Map(message[unix.SizeofIfInfomsg:])
	if err != nil {
		return nil
	}
	for _, f := range imds.Families {
		if unix.ByteSliceToString(attrs[unix.IFLA_IFNAME].Value) == namesOf(f).sink {
			links[index] = f
		}
	}
	if f, known := links[index]; known {
		return []imds.Family{f}
	}
	return nil
}

// The interfaces of another network namespace, by netlink.

package datapath

import (
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// stackedIn names an interface of a kind that stands on one of another namespace, in the namespace that this one knows by an id
// (IFLA_TARGET_NETNSID, net/core/rtnetlink.c); empty without one, or if the namespace is gone. It keeps none of the others in memory:
// a pod may have thousands.
func stackedIn(nsid int) (kind, name string, err error) {
	const skipStatistics = 1 << 3 // RTEXT_FILTER_SKIP_STATS
	request := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	request.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	request.AddData(nl.NewRtAttr(unix.IFLA_TARGET_NETNSID, nl.Uint32Attr(uint32(nsid))))
	request.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStatistics)))
	var wrong error
	err = request.ExecuteIter(unix.NETLINK_ROUTE, unix.RTM_NEWLINK, func(message []byte) (goOn bool) {
		l, err := netlink.LinkDeserialize(nil, message)
		if err != nil {
			wrong = err
			return false
		}
		if slices.Contains(stacked, l.Type()) && l.Attrs().NetNsID >= 0 { // else it stands on one of the pod's own
			kind, name = l.Type(), l.Attrs().Name
			return false
		}
		return true
	})
	switch {
	case kind != "" || wrong != nil:
		return kind, name, wrong
	case errors.Is(err, unix.EINVAL) || errors.Is(err, netlink.ErrDumpInterrupted): // it is gone, or changes; then it is asked again
		return "", "", nil
	}
	return "", "", err
}

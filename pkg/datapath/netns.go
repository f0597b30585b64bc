// Reading the interfaces of another network namespace by netlink.

package datapath

import (
	"errors"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// stackedIn finds a stacked interface whose lower device is in another namespace, inside the namespace that this one knows by
// the id nsid (IFLA_TARGET_NETNSID, net/core/rtnetlink.c); empty if there is none, or the namespace is gone. It does not keep
// the other interfaces in memory: a pod may have thousands.
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
		if slices.Contains(stacked, l.Type()) && l.Attrs().NetNsID >= 0 { // otherwise it is stacked on one of the pod's own
			kind, name = l.Type(), l.Attrs().Name
			return false
		}
		return true
	})
	switch {
	case kind != "" || wrong != nil:
		return kind, name, wrong
	case errors.Is(err, unix.EINVAL) || errors.Is(err, netlink.ErrDumpInterrupted): // the namespace is gone, or changing; it will be read again
		return "", "", nil
	}
	return "", "", err
}

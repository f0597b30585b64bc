// The watcher of the layer's pieces: it only reports that something may have changed. Whoever is woken has to look.

package route

import (
	"context"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/subscription"
)

// Watch follows the policy rules, the routes and the links of this network namespace.
type Watch struct {
	// Wake is called when a piece of a family's layer may have changed, and without a family after every new subscription.
	Wake func(changed ...imds.Family)
	// Lost is called when notifications were lost: ENOBUFS, or a broken socket.
	Lost func(error)
}

// noteSinks remembers the existing sinks, so that they are recognised even if the first notification about them is that they
// were renamed. A sink that can't be found now will be announced when it is made.
func noteSinks(links map[int32]imds.Family) {
	for _, f := range imds.Families {
		if l, err := netlink.LinkByName(namesOf(f).sink); err == nil {
			links[int32(l.Attrs().Index)] = f
		}
	}
}

// Run follows until ctx ends. It subscribes again whenever the subscription breaks.
func (w *Watch) Run(ctx context.Context) {
	subscription.Keep(ctx, func(ctx context.Context) error {
		links := map[int32]imds.Family{}
		return subscription.Follow(ctx, subscription.Source{
			Protocol: unix.NETLINK_ROUTE,
			// IPV6_IFINFO: that IPv6 is switched off or on for a link.
			Groups: []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV6_IFINFO, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_ROUTE,
				unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_ROUTE},
			Begun: func() {
				noteSinks(links)
				w.Wake()
			},
			Message: func(m syscall.NetlinkMessage) {
				if families := concerns(m, links); len(families) > 0 {
					w.Wake(families...)
				}
			},
		})
	}, w.Lost)
}

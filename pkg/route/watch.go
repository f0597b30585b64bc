// The watcher of what the layer consists of: it only says that something may have changed, and leaves it to the woken one to
// look.

package route

import (
	"context"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/subscription"
)

// Watch follows the policy rules, the routes and the links of this network namespace.
type Watch struct {
	// Wake is called when a piece of a family's layer may have changed, and with no family after every new subscription.
	Wake func(changed ...imds.Family)
	// Lost is called when notifications were lost: ENOBUFS, or a broken socket.
	Lost func(error)
}

// Run follows until ctx ends. It subscribes again whenever the subscription breaks.
func (w *Watch) Run(ctx context.Context) {
	subscription.Keep(ctx, func(ctx context.Context) error {
		links := map[int32]imds.Family{}
		return subscription.Follow(ctx, subscription.Source{
			Protocol: unix.NETLINK_ROUTE,
			Groups: []uint{unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_RULE,
				unix.RTNLGRP_IPV6_ROUTE},
			Begun: func() { w.Wake() },
			Message: func(m syscall.NetlinkMessage) {
				if f, ok := concerns(m, links); ok {
					w.Wake(f)
				}
			},
		})
	}, w.Lost)
}

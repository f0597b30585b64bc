// A subscription to notifications of netlink.

package subscription

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// buffer is the receive buffer of a subscription in bytes. A restore of 50,000 nftables rules overflows the default (208 KiB)
// but not 1 MiB; memory is used only while messages wait.
const buffer = 4 << 20

// Source is what to subscribe to, and whom to tell.
type Source struct {
	Protocol int // NETLINK_…
	Groups   []uint
	// Begun is called once, as soon as nothing that happens from then on can be missed.
	Begun func()
	// Message is called with every notification. Its bytes are valid only until it returns.
	Message func(syscall.NetlinkMessage)
}

// Follow subscribes, and passes on what it receives until ctx ends or something goes wrong: ENOBUFS, or a broken socket.
func Follow(ctx context.Context, from Source) error {
	s, err := nl.Subscribe(from.Protocol, from.Groups...)
	if err != nil {
		return fmt.Errorf("subscribing: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	if err := s.SetReceiveBufferSize(buffer, true); err != nil {
		return fmt.Errorf("setting the receive buffer: %w", err)
	}
	from.Begun()
	for {
		messages, _, err := s.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		for _, m := range messages {
			from.Message(m)
		}
	}
}

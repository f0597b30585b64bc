// What the connections to a server may take, all together.

package metrics

import (
	"context"
	"net"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/connlimit"
)

const (
	perSource      = 8
	maxConnections = 128
	receiveBuffer  = 16 << 10
	sendBuffer     = 32 << 10
)

func listen(ctx context.Context, address string) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(ioTimeout.Milliseconds()))
		})
	}}
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return connlimit.New(l, perSource, maxConnections), nil
}

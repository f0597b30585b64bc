// Limits on what all connections to a server may use together. The ports are open to every pod.

package metrics

import (
	"context"
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/connlimit"
)

const (
	// perSource is how many connections one address may have. Prometheus and the kubelet need one or two; if a pod opens more
	// than this, it loses its own.
	perSource = 8
	// maxConnections can only be exhausted by 16 pods or more. It is limited by memory: 320 clients that did their worst over
	// TLS (idle, endless headers, answers never read) brought the agent from 25 MiB to 52 MiB, and the kernel can hold the
	// buffers below for each, 12 MiB, plus some of closed connections for ioTimeout. The pod's limit is 128 MiB.
	maxConnections = 128
	// receiveBuffer and sendBuffer are in bytes; the kernel reserves twice as much (socket(7)). By default it keeps up to 4 MiB
	// for a client that keeps asking and never reads.
	receiveBuffer = 16 << 10
	sendBuffer    = 32 << 10
)

// listen opens a port. After the given time the kernel discards what a client doesn't read, even if the connection has been
// closed and is no longer counted.
func listen(ctx context.Context, address string, untaken time.Duration) (net.Listener, error) {
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { // connections inherit it
		return setOptions(c, option{unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer}, option{unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer})
	}}
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return connlimit.New(forgetful{l, untaken}, perSource, maxConnections), nil
}

// forgetful is a listener that sets the option that connections don't inherit.
type forgetful struct {
	net.Listener
	untaken time.Duration
}

// Accept implements net.Listener.
func (f forgetful) Accept() (net.Conn, error) {
	c, err := f.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		if raw, err := tcp.SyscallConn(); err == nil {
			_ = setOptions(raw, option{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(f.untaken.Milliseconds())}) // tcp(7)
		}
	}
	return c, err
}

// option is one of setsockopt(2).
type option struct{ level, name, value int }

func setOptions(c syscall.RawConn, options ...option) error {
	return c.Control(func(fd uintptr) {
		for _, o := range options {
			_ = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) // the server works without it, too
		}
	})
}

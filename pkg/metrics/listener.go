// What the connections to a server may take, all together. The ports are open to every pod.

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
	// perSource is how many connections one address may have. Prometheus and the kubelet have one or two; what a pod has
	// beyond this is at the cost of its own.
	perSource = 8
	// maxConnections takes 16 pods that mean it. Beside that the memory sets it: 320 clients that did their worst by TLS
	// (idle, endless headers, answers never read) brought the agent from 25 MiB to 52 MiB, and the kernel can hold the
	// buffers below for each, 12 MiB, and some of closed connections for ioTimeout. The pod's limit is 128 MiB.
	maxConnections = 128
	// receiveBuffer and sendBuffer are in bytes, of which the kernel keeps twice as many (socket(7)). Left to itself it
	// keeps up to 4 MiB for a client that asks again and again, and reads nothing.
	receiveBuffer = 16 << 10
	sendBuffer    = 32 << 10
)

// listen opens a port. The kernel forgets after the time given what a client doesn't take, even when the connection has
// been closed, and is not counted any more.
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

// forgetful is a listener whose connections have the option that they don't inherit.
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
			_ = unix.SetsockoptInt(int(fd), o.level, o.name, o.value) // without it there is a server all the same
		}
	})
}

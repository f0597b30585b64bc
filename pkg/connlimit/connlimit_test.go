// The limits as clients meet them: real sockets, with the addresses of the loopback network as sources.

package connlimit

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// echo serves a listener until the end of the test: what is sent comes back.
func echo(t *testing.T, network, address string, perSource, total int) (port int, l *listener) {
	t.Helper()
	inner, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	l = New(inner, perSource, total).(*listener)
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				_, _ = io.Copy(c, c)
				c.Close()
			})
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return inner.Addr().(*net.TCPAddr).Port, l
}

// counted is how many connections it knows of.
func (l *listener) counted() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.conns)
}

// client is one connection.
type client struct {
	t    *testing.T
	name string
	net.Conn
}

// dial connects from an address and has been accepted when it returns.
func dial(t *testing.T, from string, port int) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	// For the case that it fails; nothing is proved by the time.
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	n := &client{t, c.LocalAddr().String(), c}
	n.mustWork()
	return n
}

func (c *client) mustWork() {
	c.t.Helper()
	if err := c.try(); err != nil {
		c.t.Errorf("the connection of %s is gone: %v", c.name, err)
	}
}

func (c *client) mustBeGone() {
	c.t.Helper()
	if err := c.try(); err == nil {
		c.t.Errorf("the connection of %s is still there", c.name)
	} else if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		c.t.Errorf("the connection of %s hangs", c.name)
	}
}

func (c *client) try() error {
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

// TestOneSource: it has its share, and takes nothing from others; the newest connections are those that stay.
func TestOneSource(t *testing.T) {
	t.Parallel()
	for _, network := range []string{"tcp4", "tcp"} { // tcp: IPv4 sources look like IPv6 (::ffff:127.0.0.2)
		port, _ := echo(t, network, ":0", 3, 100)
		other := dial(t, "127.0.0.3", port)
		var greedy []*client
		for range 10 {
			greedy = append(greedy, dial(t, "127.0.0.2", port))
		}
		for _, c := range greedy[:7] {
			c.mustBeGone()
		}
		for _, c := range greedy[7:] {
			c.mustWork()
		}
		other.mustWork()
		dial(t, "127.0.0.3", port).mustWork()
	}
}

// TestTotal: when there are too many, who has the most loses.
func TestTotal(t *testing.T) {
	t.Parallel()
	port, _ := echo(t, "tcp", ":0", 3, 6)
	single := dial(t, "127.0.0.2", port)
	var pair, three []*client
	for range 2 {
		pair = append(pair, dial(t, "127.0.0.3", port))
	}
	for range 3 {
		three = append(three, dial(t, "127.0.0.4", port))
	}
	fifth := dial(t, "127.0.0.5", port)
	three[0].mustBeGone()
	sixth := dial(t, "127.0.0.6", port) // two have two now, and the first of these is older
	pair[0].mustBeGone()
	for _, c := range []*client{single, pair[1], three[1], three[2], fifth, sixth} {
		c.mustWork()
	}
	dial(t, "127.0.0.7", port)
	three[1].mustBeGone()
	dial(t, "127.0.0.8", port) // everybody has one now
	single.mustBeGone()
}

// TestCloseCounts: a connection that has ended leaves its place.
func TestCloseCounts(t *testing.T) {
	t.Parallel()
	port, l := echo(t, "tcp", ":0", 2, 4)
	stays := dial(t, "127.0.0.2", port)
	for range 20 {
		c := dial(t, "127.0.0.2", port)
		if err := c.Conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); err != io.EOF { // the server has closed it, and does not count it any more
			t.Fatalf("waiting for the end of a connection: %v", err)
		}
	}
	stays.mustWork()
	if n := l.counted(); n != 1 {
		t.Errorf("%d connections are counted, want 1", n)
	}
}

// TestServerIsSlow: connections that were closed for others, and that the server still works for, are no way around the
// limit either.
func TestServerIsSlow(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := New(inner, 2, 4).(*listener)
	defer l.Close()
	var held []net.Conn // that the server has been given, and does not close
	accept := func() {
		t.Helper()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		held = append(held, c)
	}
	connect := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp4", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range 4 { // the first two are closed for the others
		connect("127.0.0.2")
		accept()
	}
	refused := connect("127.0.0.2")
	connect("127.0.0.3")
	accept()
	if got := held[4].RemoteAddr().(*net.TCPAddr).IP.String(); got != "127.0.0.3" {
		t.Errorf("a fifth connection of one source was let in, of %s", got)
	}
	if _, err := refused.Read(make([]byte, 1)); err == nil {
		t.Error("a connection that was not let in can be read")
	}
	held[0].Close()
	connect("127.0.0.2")
	accept()
	if got := held[5].RemoteAddr().(*net.TCPAddr).IP.String(); got != "127.0.0.2" {
		t.Errorf("a connection was let in of %s", got)
	}
	if n := l.counted(); n != 5 {
		t.Errorf("%d connections are counted, want 5", n)
	}
}

// TestManyAtOnce is for the race detector.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	port, l := echo(t, "tcp", ":0", 3, 10)
	var all sync.WaitGroup
	for source := range 10 {
		for range 5 {
			all.Go(func() {
				d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(source))}}
				for range 10 {
					if c, err := d.Dial("tcp4", net.JoinHostPort("127.0.0.1", fmt.Sprint(port))); err == nil {
						_, _ = c.Write([]byte{1})
						_, _ = c.Read(make([]byte, 1))
						c.Close()
					}
				}
			})
		}
	}
	all.Wait()
	dial(t, "127.0.0.2", port).mustWork()
	if n := l.counted(); n > 2*10 {
		t.Errorf("%d connections are counted", n)
	}
}

func TestSources(t *testing.T) {
	t.Parallel()
	for address, want := range map[string][2]string{
		"192.0.2.1":            {"192.0.2.1", "192.0.2.1/32"},
		"::ffff:192.0.2.1":     {"192.0.2.1", "192.0.2.1/32"},
		"2001:db8:1:2:3:4:5:6": {"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"},
		"fe80::1%eth0":         {"fe80::1", "fe80::/64"},
	} {
		a := net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(address), 1))
		if s := sourceOf(a); s.String() != want[0] || networkOf(s).String() != want[1] {
			t.Errorf("%s: %s of %s, want %s", address, s, networkOf(s), want)
		}
	}
	if s := sourceOf(&net.UnixAddr{}); s.IsValid() || networkOf(s).IsValid() {
		t.Errorf("a Unix socket's source is %s of %s", s, networkOf(s))
	}
}

// Package connlimit bounds the connections of a listener, per source and in total, so that no source can lock out the
// others, and all of them together can use only so much memory.
//
// A new connection is always accepted; if that is one too many, an old one is closed for it. If the new one were refused
// instead, a few idle connections could lock out everyone who shares their address (behind NAT, or as processes of one
// host) for as long as they are held. This way an attacker has to keep reconnecting faster than the others are served.
package connlimit

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// New returns a listener that has at most total connections open, and at most perSource of each address.
//
// A connection that was closed to make room still costs something until its server closes it too. There may be as many of
// these as there may be open ones; beyond that, new connections are closed at once until one of them has ended.
func New(l net.Listener, perSource, total int) net.Listener {
	return &listener{Listener: l, perSource: perSource, total: total}
}

// listener implements net.Listener.
type listener struct {
	net.Listener
	perSource, total int

	mu    sync.Mutex
	conns []*conn // those that the server has not closed, oldest first
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		accepted, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		c := &conn{Conn: accepted, listener: l, source: sourceOf(accepted.RemoteAddr())}
		old := l.add(c)
		if old != nil {
			old.reset()
		}
		if old != c {
			return c, nil
		}
	}
}

// add adds a connection, and returns the one that must be closed for it, if any; that may be the same one.
func (l *listener) add(c *conn) (tooMany *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ofSource := l.count(func(o *conn) bool { return o.source == c.source })
	if ofSource >= 2*l.perSource || len(l.conns) >= 2*l.total {
		return c
	}
	l.conns = append(l.conns, c)
	switch {
	case l.count(func(o *conn) bool { return !o.closed && o.source == c.source }) > l.perSource:
		tooMany = l.oldest(func(o *conn) bool { return o.source == c.source })
	case l.count(func(o *conn) bool { return !o.closed }) > l.total:
		greedy := l.greediest()
		tooMany = l.oldest(func(o *conn) bool { return networkOf(o.source) == greedy })
	default:
		return nil
	}
	tooMany.closed = true
	return tooMany
}

func (l *listener) count(is func(*conn) bool) (n int) {
	for _, c := range l.conns {
		if is(c) {
			n++
		}
	}
	return n
}

// oldest returns the oldest open connection that fits.
func (l *listener) oldest(is func(*conn) bool) *conn {
	return l.conns[slices.IndexFunc(l.conns, func(c *conn) bool { return !c.closed && is(c) })]
}

// greediest returns the network with the most open connections; if several have as many, the one with the oldest.
func (l *listener) greediest() (network netip.Prefix) {
	open := map[netip.Prefix]int{}
	for _, c := range l.conns {
		if !c.closed {
			open[networkOf(c.source)]++
		}
	}
	for _, c := range l.conns {
		if n := networkOf(c.source); !c.closed && open[n] > open[network] {
			network = n
		}
	}
	return network
}

func (l *listener) remove(c *conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.conns, c); i >= 0 {
		l.conns = slices.Delete(l.conns, i, i+1)
	}
}

// conn is a connection that counts until the server closes it.
type conn struct {
	net.Conn
	listener *listener
	source   netip.Addr
	closed   bool // to make room for another; guarded by the listener's lock
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.listener.remove(c)
	return c.Conn.Close()
}

// reset closes the connection while its server still uses it, and discards unsent data, which would stay in the kernel's
// memory.
func (c *conn) reset() {
	if tcp, ok := c.Conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Conn.Close()
}

// sourceOf returns the address that a connection comes from. IPv6 addresses count separately, although one host may have a
// whole /64: on EKS a /64 is a subnet with the pods of all its nodes, including Prometheus, and each pod has one address.
func sourceOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// networkOf returns the network that an address counts towards when there are too many connections in total: the network with
// the most loses its oldest, so it is no use to have many addresses in one /64.
func networkOf(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	network, _ := a.Prefix(bits) // of no address: none
	return network
}

//go:build linux

// Sockets made in a namespace. A socket stays in the namespace that it was made in, so what is returned here can be
// used from anywhere.

package testnode

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
)

// Dial connects from inside the namespace; the Conn can be used anywhere. It takes IP addresses only, since a resolver would
// ask from outside the namespace.
func (ns *Namespace) Dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dialing %s: %w", address, err)
	}
	err = ns.doNet(func() (err error) {
		// With a single address, the Dialer makes the socket on the calling goroutine.
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens inside the namespace; the Listener can be used anywhere.
func (ns *Namespace) Listen(network, address string) (l net.Listener, err error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("listening on %s: %w", address, err)
	}
	err = ns.doNet(func() (err error) {
		l, err = net.Listen(network, address)
		return err
	})
	return l, err
}

// Client returns an HTTP client whose every request makes a new connection from inside the namespace.
func (ns *Namespace) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: ns.Dial, DisableKeepAlives: true}}
}

// Get does one HTTP GET from inside the namespace, on a connection of its own, and returns the body. Any status but
// 200 is an error.
func (ns *Namespace) Get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", fmt.Errorf("making a request for %s: %w", url, err)
	}
	resp, err := ns.Client().Do(req)
	if err != nil {
		return "", fmt.Errorf("getting %s: %w", url, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("reading the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return string(body), fmt.Errorf("getting %s: unexpected status %s", url, resp.Status)
	}
	return string(body), nil
}

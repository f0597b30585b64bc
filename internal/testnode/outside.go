//go:build linux

// The servers outside the node, besides the IMDS.

package testnode

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// The endpoint to be blocked, and ordinary web servers that have nothing to do with it. All answer on port 80.
const (
	IMDSv4     = "169.254.169.254"
	IMDSv6     = "fd00:ec2::254"
	Elsewhere4 = "192.0.2.1"
	Elsewhere6 = "2001:db8:ffff::1"
)

// Neighbours are the endpoint's neighbours, which must never be blocked. Each answers HTTP requests on port 80 with
// "ok", whatever its protocol is in real life.
var Neighbours = []string{
	"169.254.169.253", "fd00:ec2::253", // VPC DNS
	"169.254.169.123", "fd00:ec2::123", // time
	"169.254.170.23", "fd00:ec2::23", // EKS Pod Identity Agent
	"169.254.170.2", // ECS credentials
	"169.254.20.10", // NodeLocal DNSCache
}

// servedAddrs are the addresses served outside the node.
func servedAddrs() []netip.Prefix {
	var addrs []netip.Prefix
	for _, ip := range append([]string{IMDSv4, IMDSv6, Elsewhere4, Elsewhere6}, Neighbours...) {
		addrs = append(addrs, single(netip.MustParseAddr(ip)))
	}
	return addrs
}

// serveOthers answers "ok" for the neighbours and elsewhere.
func serveOthers(ns *Namespace) (*server, error) {
	return serve(ns, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok")
	}), append([]string{Elsewhere4, Elsewhere6}, Neighbours...)...)
}

// server is an HTTP server on several addresses.
type server struct {
	http      http.Server
	listeners sync.WaitGroup
}

// serve runs an HTTP server on port 80 of each of the addresses.
func serve(ns *Namespace, handler http.Handler, ips ...string) (*server, error) {
	s := &server{http: http.Server{Handler: handler}}
	for _, ip := range ips {
		l, err := ns.Listen("tcp", net.JoinHostPort(ip, "80"))
		if err != nil {
			s.close()
			return nil, fmt.Errorf("serving %s: %w", ip, err)
		}
		s.listeners.Go(func() { _ = s.http.Serve(l) })
	}
	return s, nil
}

// close stops the server and returns once its addresses are free.
func (s *server) close() {
	_ = s.http.Close()
	s.listeners.Wait()
}

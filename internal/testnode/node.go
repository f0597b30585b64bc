//go:build linux

// The node: its life, and its connection to the outside.

package testnode

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"sync"
)

// uplink is the node's interface to the outside, uplinkPeer its other end.
const (
	uplink     = "eth0"
	uplinkPeer = "node0"
)

// Addresses of the node, of its gateway outside, and of the pods.
var (
	nodeV4, nodeV6       = netip.MustParsePrefix("10.0.0.10/24"), netip.MustParsePrefix("2001:db8::10/64")
	gatewayV4, gatewayV6 = netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("2001:db8::1/64")
	podsV4, podsV6       = netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("2001:db8:1::/112")
)

// Node is a throwaway node: a network and a mount namespace of its own (with a private tmpfs on /run, and so its own
// /run/xtables.lock), an uplink eth0 (a veth) to an "outside" network namespace in which the IMDS answers on 169.254.169.254:80
// and [fd00:ec2::254]:80, and pods. Nothing in it filters packets. Safe for concurrent use.
type Node struct {
	host, outside *Namespace
	imds          *IMDS
	others        *server

	mu     sync.Mutex
	pods   []*Pod
	serial int    // of the pods, for their addresses
	cgroup string // the pods', if there is one
	closed bool
}

// New makes a node without pods.
func New() (*Node, error) {
	n := &Node{}
	if err := n.setUp(); err != nil {
		return nil, errors.Join(fmt.Errorf("making a node: %w", err), n.Close())
	}
	return n, nil
}

func (n *Node) setUp() (err error) {
	if n.outside, err = newNamespace(); err != nil {
		return err
	}
	if n.host, err = newNamespace(); err != nil {
		return err
	}
	if err := n.host.addMount(); err != nil {
		return err
	}
	if err := n.host.setSysctls("net/ipv4/ip_forward=1", "net/ipv6/conf/all/forwarding=1"); err != nil {
		return err
	}
	if err := n.connect(); err != nil {
		return err
	}
	if n.others, err = serveOthers(n.outside); err != nil {
		return err
	}
	n.imds, err = serveIMDS(n.outside)
	return err
}

// connect sets the uplink up.
func (n *Node) connect() error {
	if err := n.host.addVeth(uplink, n.outside, uplinkPeer); err != nil {
		return err
	}
	err := n.outside.setUpLink(uplinkPeer, linkSpec{
		addrs:  append(servedAddrs(), gatewayV4, gatewayV6),
		routes: map[netip.Prefix]netip.Addr{podsV4: nodeV4.Addr(), podsV6: nodeV6.Addr()},
	})
	if err != nil {
		return err
	}
	err = n.host.setUpLink(uplink, linkSpec{
		addrs:    []netip.Prefix{nodeV4, nodeV6},
		gateways: []netip.Addr{gatewayV4.Addr(), gatewayV6.Addr()},
	})
	if err != nil {
		return err
	}
	if err := n.outside.waitForLink(uplinkPeer); err != nil {
		return err
	}
	return n.host.waitForLink(uplink)
}

// Close removes everything: processes, namespaces, links. Closing twice is fine. A connection that the caller made in a
// namespace and still has open keeps that namespace alive, with no way out of it, until it is closed.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	if n.imds != nil {
		n.imds.Stop()
	}
	if n.others != nil {
		n.others.close()
	}
	namespaces := slices.DeleteFunc([]*Namespace{n.host, n.outside}, func(ns *Namespace) bool { return ns == nil })
	for _, pod := range n.pods {
		namespaces = append(namespaces, pod.Namespace)
	}
	err := killProcesses(namespaces)
	if n.host != nil {
		// The pods' links go away with their namespaces, all at once. Deleting them one by one takes the kernel much longer.
		err = errors.Join(err, n.host.deleteLink(uplink))
	}
	for _, ns := range namespaces {
		ns.close()
	}
	err = errors.Join(err, n.removeCgroups())
	if err != nil {
		return fmt.Errorf("closing a node: %w", err)
	}
	return nil
}

// Command is exec.CommandContext inside the node's network and mount namespaces: see [Namespace.Command].
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return n.host.Command(ctx, name, args...)
}

// Host returns the node's own namespace.
func (n *Node) Host() *Namespace { return n.host }

// Outside returns the namespace of everything that is not the node or a pod.
func (n *Node) Outside() *Namespace { return n.outside }

// IMDS returns the stand-in for the metadata service.
func (n *Node) IMDS() *IMDS { return n.imds }

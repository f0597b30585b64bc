//go:build linux

// Pods, connected to the node the way the AWS VPC CNI does it.

package testnode

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// The gateways that pods use. No interface has these addresses: a permanent neighbour entry in the pod sends the packets
// to the host side of its veth, as amazon-vpc-cni-k8s does (cmd/routed-eni-cni-plugin/driver).
var podGateways = []netip.Addr{netip.MustParseAddr("169.254.1.1"), netip.MustParseAddr("fe80::1")}

// Pod is a network namespace whose eth0 is the other end of the node's interface Ifname.
type Pod struct {
	*Namespace
	Ifname     string
	IPv4, IPv6 netip.Addr
}

// AddPod makes a pod whose interface on the node's side is called ifname, "eni0123456789a" for example. It is ready for
// traffic when AddPod returns.
func (n *Node) AddPod(ifname string) (*Pod, error) {
	n.mu.Lock()
	n.serial++
	pod := &Pod{Ifname: ifname, IPv4: offset(podsV4, n.serial), IPv6: offset(podsV6, n.serial)}
	n.mu.Unlock()
	var err error
	if pod.Namespace, err = newNamespace(); err != nil {
		return nil, fmt.Errorf("adding pod %s: %w", ifname, err)
	}
	if err := n.connectPod(pod); err != nil {
		pod.close()
		return nil, fmt.Errorf("adding pod %s: %w", ifname, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		pod.close()
		return nil, fmt.Errorf("adding pod %s: the node was closed meanwhile", ifname)
	}
	n.pods = append(n.pods, pod)
	return pod, nil
}

func (n *Node) connectPod(pod *Pod) error {
	if err := n.host.addVeth(pod.Ifname, pod.Namespace, "eth0"); err != nil {
		return err
	}
	hostSide, err := n.host.HardwareAddr(pod.Ifname)
	if err != nil {
		return err
	}
	addrs := []netip.Prefix{single(pod.IPv4), single(pod.IPv6)}
	err = pod.setUpLink("eth0", linkSpec{
		addrs:    addrs,
		onLink:   []netip.Prefix{single(podGateways[0])},
		gateways: podGateways,
		neighbor: hostSide,
	})
	if err != nil {
		return err
	}
	if err := n.host.setUpLink(pod.Ifname, linkSpec{onLink: addrs}); err != nil {
		return err
	}
	if err := pod.waitForLink("eth0"); err != nil {
		return err
	}
	return n.host.waitForLink(pod.Ifname)
}

// DeletePod removes a pod, its processes and its interface on the node, which is gone when DeletePod returns.
func (n *Node) DeletePod(pod *Pod) error {
	n.mu.Lock()
	known := slices.Contains(n.pods, pod)
	n.pods = slices.DeleteFunc(n.pods, func(p *Pod) bool { return p == pod })
	n.mu.Unlock()
	if !known {
		return fmt.Errorf("deleting pod %s: the node has no such pod", pod.Ifname)
	}
	err := errors.Join(killProcesses([]*Namespace{pod.Namespace}), n.host.deleteLink(pod.Ifname))
	pod.close()
	if err != nil {
		return fmt.Errorf("deleting pod %s: %w", pod.Ifname, err)
	}
	return nil
}

// offset returns the address n after the prefix's first, for an n below 65536.
func offset(p netip.Prefix, n int) netip.Addr {
	raw := p.Addr().AsSlice()
	raw[len(raw)-2], raw[len(raw)-1] = byte(n>>8), byte(n)
	addr, _ := netip.AddrFromSlice(raw)
	return addr
}

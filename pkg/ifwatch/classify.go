// Which of the node's interfaces lead to pods.
package ifwatch

import (
	"regexp"

	"github.com/vishvananda/netlink"
)

// Interface is a pod-side interface of the node: one through which packets of pods enter FORWARD.
type Interface struct {
	Name string
	// Kind is the kernel's name of its type, e.g. veth or bridge.
	Kind string
}

// cniNames are the names that CNI plugins give to interfaces which lead to pods, for those whose type does not tell:
//   - eni…, vlan…: Amazon VPC CNI, pods and pods with security groups (amazon-vpc-cni-k8s, pkg/sgpp/utils.go);
//   - cali…: Calico; lxc…: Cilium; knet…: kindnet;
//   - cni0, cbr0, docker0, br-…: the bridges of flannel and the bridge plugin, kubenet, and Docker.
var cniNames = regexp.MustCompile(`^((eni|vlan)[0-9a-f]{11}|cali[0-9a-f]+|lxc[0-9a-f_]+|knet[0-9a-f]+|cni[0-9]+|cbr0|docker0|br-[0-9a-f]{12})$`)

// podSide picks the interfaces that lead to pods. A veth or netkit whose peer is in another network namespace does, but
// if it is the port of a bridge, its packets enter FORWARD by the bridge, which then stands for it. An uplink never
// does, even where it is a veth itself (kind, and nodes in containers).
func podSide(links []netlink.Link, uplinks map[int]bool) []Interface {
	bridges := map[int]bool{}
	for _, l := range links {
		if l.Type() == "bridge" {
			bridges[l.Attrs().Index] = true
		}
	}
	leads := map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		switch {
		case uplinks[a.Index]:
		case !hasPeerElsewhere(l):
			leads[a.Index] = leads[a.Index] || cniNames.MatchString(a.Name)
		case bridges[a.MasterIndex]:
			leads[a.MasterIndex] = true
		default:
			leads[a.Index] = true
		}
	}
	var found []Interface
	for _, l := range links {
		if a := l.Attrs(); leads[a.Index] && !uplinks[a.Index] {
			found = append(found, Interface{a.Name, l.Type()})
		}
	}
	return found
}

// hasPeerElsewhere reports whether the link is one end of a pair whose other end is in another network namespace: the
// kernel then says in which (IFLA_LINK_NETNSID, net/core/rtnetlink.c).
func hasPeerElsewhere(l netlink.Link) bool {
	switch l.Type() {
	case "veth", "netkit":
		return l.Attrs().NetNsID >= 0
	}
	return false
}

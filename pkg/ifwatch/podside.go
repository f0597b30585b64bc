// Which of the node's interfaces lead to pods.

package ifwatch

import (
	"regexp"

	"github.com/vishvananda/netlink"
)

// cniNames are the names that CNI plugins give to interfaces which lead to pods, for those whose type does not tell:
//   - eni…, vlan…: Amazon VPC CNI, pods and pods with security groups (amazon-vpc-cni-k8s, pkg/sgpp/utils.go);
//   - cali…: Calico; lxc…: Cilium; knet…: kindnet;
//   - cni0, cbr0, docker0, br-…: the bridges of flannel and the bridge plugin, kubenet, and Docker.
var cniNames = regexp.MustCompile(`^((eni|vlan)[0-9a-f]{11}|cali[0-9a-f]+|lxc[0-9a-f_]+|knet[0-9a-f]+|cni[0-9]+|cbr0|docker0|br-[0-9a-f]{12})$`)

// podSide picks the interfaces through which pods' packets enter FORWARD. An uplink never counts, whatever else it is.
// Nor does a bridge that has no port and never had anything to pass up: Docker creates docker0 whether or not it ever runs a
// container. One that once had counts on while it has no port, or containers that come and go would reset the alert's time.
func podSide(links []netlink.Link, uplinks map[int]bool) []Interface {
	var toPods []int
	bridged := map[int]bool{} // the masters that have a port
	for _, l := range links {
		bridged[l.Attrs().MasterIndex] = true
	}
	for _, l := range links {
		a := l.Attrs()
		named := cniNames.MatchString(a.Name) && (l.Type() != "bridge" || bridged[a.Index] || passedUp(a))
		if !uplinks[a.Index] && (hasPeerElsewhere(l) || named) {
			toPods = append(toPods, a.Index)
		}
	}
	var found []Interface
	for _, l := range newLayout(links).waysIn(toPods...) {
		if !uplinks[l.Attrs().Index] {
			found = append(found, Interface{l.Attrs().Name, l.Type()})
		}
	}
	return found
}

// passedUp reports whether frames have come to the node through a bridge: its own counters are of those alone.
func passedUp(bridge *netlink.LinkAttrs) bool {
	return bridge.Statistics != nil && bridge.Statistics.RxPackets > 0
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

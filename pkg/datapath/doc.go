// Package datapath finds ways in which pods' packets leave the node without passing the FORWARD hook: the eBPF datapaths of
// Cilium and Calico, and pod interfaces stacked on one of the node's (macvlan, ipvlan). Where there is one, what the packet
// layers report proves nothing.
package datapath

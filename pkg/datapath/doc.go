// Package datapath finds the ways by which pods' packets leave the node without coming to the hook FORWARD: the eBPF datapaths of
// Cilium and Calico, and interfaces of pods that stand on one of the node's (macvlan, ipvlan). What the layers of packets say
// proves nothing there.
package datapath

// Package cgroup is the layer of the pods' sockets: BPF programs at the cgroup below which all pods are refuse to connect a
// socket to the endpoint, or to send from one to it, with EPERM and at once. It needs no packet to come by anywhere, so that
// it holds where a CNI's datapath goes past the node's routing and netfilter (eBPF host routing, macvlan, ipvlan).
//
// For each family there are a few hooks (see hook), each with a program, and a link that holds it at the cgroup. Programs and
// links are pinned in bpffs, so that they outlive the agent; a program is replaced in its link at one stroke
// (BPF_LINK_UPDATE). Pods in the node's own network namespace are told by the namespace's cookie, and let through.
//
// What no socket call announces gets by: raw sockets, frames of AF_PACKET, a connection that was there before, packets that
// somebody else rewrites on their way. So this layer closes no path alone, and stands beside those that stop packets.
//
// A Layer is for the one goroutine that keeps it.
package cgroup

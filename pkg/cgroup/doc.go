// Package cgroup is the layer that refuses pods' sockets: BPF programs attached to the cgroup above all pods refuse, with an
// immediate EPERM, to connect a socket to the endpoint or to send to it. It does not depend on where packets go, so it works
// where a CNI's datapath bypasses the node's routing and netfilter (eBPF host routing, macvlan, ipvlan).
//
// Each family has a few hooks (see hook), each with a program and a link that attaches it to the cgroup. Programs and links
// are pinned in bpffs, so that they outlive the agent; a program is replaced in its link atomically (BPF_LINK_UPDATE). Pods
// in the node's own network namespace are recognised by the namespace's cookie, and let through.
//
// Whatever no socket call announces gets through: raw sockets, AF_PACKET frames, connections that already exist, packets
// that something else rewrites on their way. So this layer never closes a path alone; it complements the layers that stop
// packets.
//
// A Layer is for the one goroutine that keeps it.
package cgroup

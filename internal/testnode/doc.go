// Package testnode makes throwaway nodes for tests, benchmarks and the demo: a network namespace that looks like an EKS
// node, pods that are connected to it the way the AWS VPC CNI connects them, and an "outside" in which the instance
// metadata service and its neighbours answer.
//
// Everything is real (kernel, veths, forwarding, iptables), so that a test sees what a packet would meet, and everything
// is anonymous: the namespaces have no names and no processes of their own. File descriptors of the process that called
// [New] hold them, so they go away with it, however it ends, and any number of nodes can exist at once.
//
// It needs Linux, root, and nsenter for [Node.Command].
package testnode

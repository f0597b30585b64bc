// Package probe sends a packet to the endpoint as a pod would, and watches what becomes of it. It proves what no reading back
// can: that what is in force stops packets.
//
// The packet comes from an interface of our own, which is a veth pair with both ends in the node's namespace: a frame that is
// sent at the far end enters the node by the near one, and is forwarded like a pod's. The pair, and with it the route back to the
// packet's made-up source, is there for as long as that takes. What a killed process has left is removed by the next one, and by
// Cleanup.
package probe

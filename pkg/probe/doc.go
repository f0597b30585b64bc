// Package probe sends a packet to the endpoint as a pod would, and watches what becomes of it. It proves what reading back rules
// can't: that what is in force really stops packets.
//
// The packet comes from an interface of our own, a veth pair with both ends in the node's namespace: a frame sent at the far end
// enters the node through the near end, and is forwarded like a pod's. The pair, and with it the route back to the packet's
// made-up source, exists only during the probe. The next probe, or Cleanup, removes what a killed process left behind.
package probe

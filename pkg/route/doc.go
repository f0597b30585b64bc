// Package route is the policy routing layer: whatever the node forwards to the endpoint is routed into a sink, regardless of
// the interface it came in by. It survives flushes of iptables, nftables and the policy rules, needs no kernel module except
// veth and no interface pattern, and never affects the node's own packets.
//
// Each family has four pieces (see piece): a policy rule that sends everything that did not originate on the node to a table
// of our own; in that table, a route into the sink; behind it a blackhole route, in case the sink is gone; and the sink, one
// end of a veth whose other end is down. On their way into the sink packets cross FORWARD, so that iptables' rules, with
// their counters and their REJECT, keep working; the sink counts what they let through.
//
// A Layer is for the one goroutine that keeps it. Its sockets belong to the network namespace of the thread that used it
// first.
package route

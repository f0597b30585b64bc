// Package route is the layer of policy routing: what the node forwards to the endpoint, by whatever interface it came in, is
// routed into a sink. No flush of iptables, of nftables or of the policy rules takes it away, it needs no module but
// veth's and no interface pattern, and the node's own packets never meet it.
//
// For each family there are four pieces (see piece): a policy rule that leads whatever did not start on the node into a table
// of our own; in that table a route into the sink; behind that one a blackhole, should the sink be gone; and the sink, one end
// of a veth whose other end is down. On their way into the sink packets cross FORWARD, so that iptables' rules, with their
// counters and their REJECT, go on working; what they let by, the sink counts.
//
// A Layer is for the one goroutine that keeps it. Its sockets belong to the network namespace of the thread that asked first.
package route

// Package rules is the iptables layer: it knows which rules a policy requires, reads which ones exist, says how the two
// differ, and repairs the difference.
//
// A Table is for the one goroutine that keeps it; tables of different families share nothing but the Selector, which is safe
// for concurrent use. Forked commands and sockets belong to the network namespace of the calling thread.
package rules

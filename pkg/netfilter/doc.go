// Package netfilter asks the kernel directly about iptables, without forking a command: what nftables has in FORWARD,
// whether a chain or a legacy table exists, and when something has changed. Only NFT.Replace, NFT.MakeTable and
// NFT.DeleteTable change anything.
//
// Every call works in the network namespace of the calling thread and needs CAP_NET_ADMIN.
package netfilter

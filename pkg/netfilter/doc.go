// Package netfilter asks the kernel itself about iptables, without forking a command: what nftables has in FORWARD, whether
// a chain or a legacy table exists, and that something has changed. It changes nothing, but for
// NFT.Replace, NFT.MakeTable and NFT.DeleteTable.
//
// Every call works in the network namespace of the calling thread and needs CAP_NET_ADMIN.
package netfilter

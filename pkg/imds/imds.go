// Package imds says where the EC2 instance metadata service is: its address families and its address in each.
package imds

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
)

// Family is an address family. IPv4 and IPv6 are two values of this type everywhere; nothing is written twice for them.
type Family string

// The families.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
)

// Families lists every family.
var Families = []Family{IPv4, IPv6}

// Endpoint is the address of the EC2 instance metadata service in this family, as a host prefix.
//
// Source: AWS, "Use the Instance Metadata Service to access instance metadata" (both addresses; the IPv6 one exists on
// Nitro instances in subnets with IPv6).
func (f Family) Endpoint() netip.Prefix {
	if f == IPv6 {
		return netip.MustParsePrefix("fd00:ec2::254/128")
	}
	return netip.MustParsePrefix("169.254.169.254/32")
}

// Present reports whether the kernel runs this family at all: ipv6.disable=1 and a kernel without IPv6 both leave it out. What
// can't be seen counts as yes.
func (f Family) Present() bool {
	_, err := os.Stat("/proc/sys/net/" + string(f))
	_, hidden := os.Stat("/proc/sys/net")
	return hidden != nil || !errors.Is(err, fs.ErrNotExist)
}

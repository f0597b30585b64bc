// Package imds defines where the EC2 instance metadata service is: its address families and its address in each.
package imds

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Family is an address family. IPv4 and IPv6 are two values of this type everywhere, so that no code has to be written twice.
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

// Present reports whether the kernel runs this family at all: it is missing with ipv6.disable=1 or in a kernel without IPv6. If
// that can't be seen, the answer is yes.
func (f Family) Present() bool {
	_, err := os.Stat("/proc/sys/net/" + string(f))
	_, hidden := os.Stat("/proc/sys/net")
	return hidden != nil || !errors.Is(err, fs.ErrNotExist)
}

// Forwarded reports whether the kernel forwards packets of this family on any interface. In IPv4 each interface has its own
// setting (net/ipv4/route.c, ip_route_input_slow). In IPv6 there is a common one and, since Linux 6.17, one per interface that
// overrides it (net/ipv6/ip6_output.c, ip6_forward). If a setting can't be read, the answer is yes.
func (f Family) Forwarded() bool {
	patterns := []string{"ipv4/conf/*/forwarding"}
	if f == IPv6 {
		patterns = []string{"ipv6/conf/all/forwarding", "ipv6/conf/*/force_forwarding"}
	}
	var files []string
	for _, p := range patterns {
		found, _ := filepath.Glob("/proc/sys/net/" + p)
		files = append(files, found...)
	}
	if len(files) == 0 {
		return f.Present()
	}
	return slices.ContainsFunc(files, func(file string) bool {
		value, err := os.ReadFile(file)
		return err != nil || strings.TrimSpace(string(value)) != "0"
	})
}

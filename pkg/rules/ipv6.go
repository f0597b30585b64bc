// Whether there is anything to enforce in a family.

package rules

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// forwardsIPv6 reports whether packets of pods can cross the node by IPv6, which is decided for each interface that they
// come in by. What can't be read counts as yes.
func forwardsIPv6() bool {
	files, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/*forwarding") // forwarding, mc_forwarding, force_forwarding
	return len(files) == 0 || slices.ContainsFunc(files, func(file string) bool {
		value, err := os.ReadFile(file)
		return err != nil || strings.TrimSpace(string(value)) != "0"
	})
}

// unsupported reports whether there is nothing to enforce in a family, err being why its chain could not be
// read, if there is a reason.
func unsupported(f imds.Family, err error) (detail string, yes bool) {
	switch {
	case f != imds.IPv6:
		return "", false
	case !f.Present():
		return "the kernel runs without IPv6", true
	case withoutNetfilter(err) && !forwardsIPv6():
		return "the kernel has no IPv6 netfilter, and forwards no IPv6", true
	}
	return "", false
}

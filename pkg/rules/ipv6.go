// Whether there is anything to enforce in a family.

package rules

import (
	"github.com/imds-guard/imds-guard/pkg/imds"
)

// unsupported reports whether there is nothing to enforce in a family. err is why its chain could not be read, if there is a
// reason.
func unsupported(f imds.Family, err error) (detail string, yes bool) {
	switch {
	case f != imds.IPv6:
		return "", false
	case !f.Present():
		return "the kernel runs without IPv6", true
	case withoutNetfilter(err) && !f.Forwarded():
		return "the kernel has no IPv6 netfilter, and does not forward IPv6", true
	}
	return "", false
}

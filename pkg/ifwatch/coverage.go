// Which interfaces no pattern matches, and what to do about it.

package ifwatch

import (
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// Uncovered returns the interfaces that none of the patterns matches.
func Uncovered(interfaces []Interface, patterns []ifpattern.Pattern) []Interface {
	return slices.DeleteFunc(slices.Clone(interfaces), func(i Interface) bool {
		return slices.ContainsFunc(patterns, func(p ifpattern.Pattern) bool { return ifpattern.Match(p.String(), i.Name) })
	})
}

// prefixes are the beginnings of names whose rest differs from pod to pod.
var prefixes = []string{"eni", "vlan", "cali", "lxc", "knet", "veth", "br-", "cni"}

// Fix says what to do so that a pattern covers an interface.
func Fix(name string) string {
	text := name
	if i := slices.IndexFunc(prefixes, func(p string) bool { return strings.HasPrefix(name, p) }); i >= 0 {
		text = prefixes[i] + "+"
	}
	p, err := ifpattern.Parse(text)
	if err != nil { // the kernel allows names that the configuration doesn't: with a comma, a quote, a plus in the middle
		return "no --interface value can match it; rename the interface"
	}
	return "add --interface " + p.String()
}

// Which pod-side interfaces no pattern matches.
package ifwatch

import (
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// Uncovered returns the interfaces that none of the patterns matches.
func Uncovered(interfaces []Interface, patterns []ifpattern.Pattern) []Interface {
	return slices.DeleteFunc(slices.Clone(interfaces), func(i Interface) bool {
		return slices.ContainsFunc(patterns, func(p ifpattern.Pattern) bool { return ifpattern.Match(p.String(), i.Name) })
	})
}

// prefixes are the beginnings of names after which comes a part that differs from pod to pod.
var prefixes = []string{"eni", "vlan", "cali", "lxc", "knet", "veth", "br-", "cni"}

// Suggest is the pattern that would cover an interface.
func Suggest(name string) string {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return p + "+"
		}
	}
	return name
}

// SettleTime is for how long an interface must be uncovered before the log names it: a CNI plugin makes a veth first and
// puts it into its bridge, or gives it its name, later.
const SettleTime = time.Second

// Reporter names uncovered interfaces, each once for as long as it stays. It is not safe for concurrent use.
type Reporter struct {
	Log *slog.Logger
	// Told is called with every interface that is named, and with what would cover it. It may be nil.
	Told  func(name, fix string)
	since map[Interface]time.Time
	told  map[Interface]bool
}

// Report takes the interfaces that are uncovered now. It returns the names of those that have been for SettleTime, and whether
// there are others, of which it will know by then.
func (r *Reporter) Report(now time.Time, uncovered []Interface) (settled []string, settling bool) {
	since, told := map[Interface]time.Time{}, map[Interface]bool{}
	for _, i := range uncovered {
		since[i], told[i] = now, r.told[i]
		if first, known := r.since[i]; known {
			since[i] = first
		}
		if now.Sub(since[i]) < SettleTime {
			settling = true
			continue
		}
		settled = append(settled, i.Name)
		if !told[i] {
			told[i] = true
			fix := "add --interface " + Suggest(i.Name)
			r.Log.Warn("no rule covers a pod-side interface: its pods can reach the metadata service",
				"interface", i.Name, "kind", i.Kind, "fix", fix)
			if r.Told != nil {
				r.Told(i.Name, fix)
			}
		}
	}
	r.since, r.told = since, told
	return settled, settling
}

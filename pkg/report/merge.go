// Merging the nodes' reports into one row per workload.

package report

import (
	"cmp"
	"maps"
	"math"
	"math/bits"
	"slices"
)

// Merge makes one row of what all nodes report about a workload. The workload with the most attempts comes first; ties are
// ordered by namespace, kind and name, so that the same nodes in any order give the same rows. A node that lies is believed.
func Merge(nodes []Node) []Workload {
	type identity struct{ namespace, kind, name string }
	merged := map[identity]*Workload{}
	for _, n := range nodes {
		for _, w := range n.Workloads {
			id := identity{w.Namespace, w.Kind, w.Name}
			if merged[id] == nil {
				merged[id] = &Workload{Namespace: w.Namespace, Kind: w.Kind, Name: w.Name}
			}
			merged[id].add(w)
		}
	}
	rows := make([]Workload, 0, len(merged))
	for _, w := range merged {
		slices.Sort(w.Commands)
		w.Commands = slices.Compact(w.Commands)
		w.Requests = sumRequests(w.Requests)
		rows = append(rows, *w)
	}
	slices.SortFunc(rows, func(a, b Workload) int {
		return cmp.Or(
			cmp.Compare(b.Attempts(), a.Attempts()),
			cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Kind, b.Kind),
			cmp.Compare(a.Name, b.Name),
		)
	})
	return rows
}

// Attempts returns how many socket calls there were, refused or not.
func (w Workload) Attempts() uint64 { return sum(w.Blocked, w.Audited) }

// add adds what another node reports about the same workload. Commands and requests are only appended.
func (w *Workload) add(other Workload) {
	w.HostNetwork = w.HostNetwork || other.HostNetwork
	w.Pods += other.Pods
	w.Blocked = sum(w.Blocked, other.Blocked)
	w.Audited = sum(w.Audited, other.Audited)
	if !other.First.IsZero() && (w.First.IsZero() || other.First.Before(w.First)) {
		w.First = other.First
	}
	if other.Last.After(w.Last) {
		w.Last = other.Last
	}
	w.Commands = append(w.Commands, other.Commands...)
	w.Requests = append(w.Requests, other.Requests...)
}

// sumRequests merges all requests of a kind. The most important come first.
func sumRequests(requests []Request) []Request {
	counts := map[Request]uint64{}
	for _, r := range requests {
		kind := r
		kind.Count = 0
		counts[kind] = sum(counts[kind], r.Count)
	}
	summed := slices.Collect(maps.Keys(counts))
	for i := range summed {
		summed[i].Count = counts[summed[i]]
	}
	slices.SortFunc(summed, func(a, b Request) int {
		return cmp.Or(
			cmp.Compare(importance(a.Document), importance(b.Document)),
			cmp.Compare(b.Count, a.Count),
			cmp.Compare(a.Document, b.Document),
			cmp.Compare(a.Version, b.Version),
			cmp.Compare(a.Agent, b.Agent),
		)
	})
	return summed
}

// sum saturates, so that a lying node's count doesn't make those of the others disappear by overflow.
func sum(a, b uint64) uint64 {
	total, carry := bits.Add64(a, b, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return total
}

// Which pod asks.

package agent

import (
	"sync"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
)

// The pods' directory is read at most so often to find out who asks.
const (
	walksPerSecond = 10
	walksBurst     = 10
)

// mostNobodys bounds the memory of cgroups that are no pod's.
const mostNobodys = 10_000

// owners finds the pods of those who ask. A pod's cgroup has to be looked for while it is there, and is then known until two readings
// later. It may be used from any goroutine.
type owners struct {
	// place is the pods' cgroup v2 directory, empty while it is not known.
	place func() string
	walks *rate.Limiter

	mu            sync.Mutex
	known, before map[uint64]string
	// nobodys are those that were not there when the directory was read after they had asked: an id never comes back.
	nobodys map[cgroup.Asker]bool
}

func newOwners(place func() string) *owners {
	return &owners{place: place, walks: rate.NewLimiter(walksPerSecond, walksBurst), nobodys: map[cgroup.Asker]bool{}}
}

// of implements attempts.Owners.
func (o *owners) of(askers ...cgroup.Asker) map[cgroup.Asker]string {
	o.mu.Lock()
	defer o.mu.Unlock()
	uids := map[cgroup.Asker]string{}
	if o.add(uids, askers) {
		return uids
	}
	place := o.place()
	if place == "" || !o.walks.Allow() {
		return uids
	}
	pods, err := cgroup.Pods(place)
	if err != nil {
		return uids
	}
	o.before, o.known = o.known, map[uint64]string{}
	for uid, id := range pods {
		o.known[id] = uid
	}
	if o.add(uids, askers) {
		return uids
	}
	for _, a := range askers {
		if _, known := uids[a]; !known {
			if len(o.nobodys) >= mostNobodys {
				clear(o.nobodys)
			}
			o.nobodys[a], uids[a] = true, ""
		}
	}
	return uids
}

// add adds those that are known, and reports whether these are all.
func (o *owners) add(uids map[cgroup.Asker]string, askers []cgroup.Asker) (all bool) {
	for _, a := range askers {
		if uid := o.find(a); uid != "" || o.nobodys[a] {
			uids[a] = uid
		}
	}
	return len(uids) == len(askers)
}

func (o *owners) find(a cgroup.Asker) string {
	for _, id := range []uint64{a.Top, a.Second} {
		for _, known := range []map[uint64]string{o.known, o.before} {
			if uid := known[id]; uid != "" {
				return uid
			}
		}
	}
	return ""
}

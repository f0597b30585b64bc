// Which pod asks.

package agent

import (
	"sync"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
)

// How often the pods' directory may be read to find out who asks.
const (
	walksPerSecond = 10
	walksBurst     = 10
)

// mostNobodys bounds how many cgroups that belong to no pod are remembered.
const mostNobodys = 10_000

// owners finds the pods that ask. A pod's cgroup has to be looked up while it exists; it is then remembered until two readings
// later. It may be used from any goroutine.
type owners struct {
	// place is the pods' cgroup v2 directory, empty while it is not known.
	place func() string
	walks *rate.Limiter

	mu            sync.Mutex
	known, before map[uint64]string
	// nobodys were not in the directory when it was read after they had asked. Cgroup ids are never reused.
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

// add adds the known ones, and reports whether that is all of them.
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

// Whose a cgroup is.

package agent

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
)

// Directories are read to find an owner at most so often: a node has thousands.
const (
	walksPerSecond = 10
	walksBurst     = 10
	// missedFor is for how long it is believed that a cgroup is of no pod.
	missedFor  = 10 * time.Second
	mostMissed = 1000
)

// owners finds the pods that cgroups are of. A cgroup has to be looked for while it is there, and is then known until two readings later.
// It may be used from any goroutine.
type owners struct {
	// place is the pods' cgroup v2 directory, empty while it is not known.
	place func() string
	walks *rate.Limiter

	mu            sync.Mutex
	known, before map[uint64]string
	missed        map[uint64]time.Time
}

func newOwners(place func() string) *owners {
	return &owners{place: place, walks: rate.NewLimiter(walksPerSecond, walksBurst), missed: map[uint64]time.Time{}}
}

// of returns the pod's UID, empty if it is of none. ok is false if that can't be said now, and is worth asking again.
func (o *owners) of(id uint64) (uid string, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if uid := o.find(id); uid != "" || time.Since(o.missed[id]) < missedFor {
		return uid, true
	}
	place := o.place()
	if place == "" || !o.walks.Allow() {
		return "", false
	}
	if _, now, err := cgroup.Pods(place); err == nil {
		o.known, o.before = now, o.known
	}
	if uid = o.find(id); uid == "" {
		if len(o.missed) > mostMissed {
			clear(o.missed)
		}
		o.missed[id] = time.Now()
	}
	return uid, true
}

func (o *owners) find(id uint64) string {
	if uid := o.known[id]; uid != "" {
		return uid
	}
	return o.before[id]
}

// Pods in the node's network: who of them is let through, and who is not and asks all the same.

package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

const (
	// hostsPeriod is how often to look who has asked: a container that has may end soon.
	hostsPeriod = time.Second
	// hostsPause is after what time to look again for a cgroup that is not there yet, for hostsPatience. A pod that is let through must
	// not wait for long; one without a cgroup after that has other troubles.
	hostsPause    = 100 * time.Millisecond
	hostsPatience = time.Minute
	// mostNamed bounds the memory of who was named.
	mostNamed = 1000
)

// hosts keeps the list of pods in the node's network that are let through. run owns everything but what mu guards; Wake and
// unlisted may be called from any goroutine.
type hosts struct {
	mode       policy.HostNetwork
	namespaces []string
	resync     time.Duration
	log        *slog.Logger
	// place is the pods' cgroup v2 directory, empty while it is not known.
	place func() string
	// list returns the node's pods; known is false as long as nobody has said.
	list func() (all []pods.Pod, known bool)
	wake chan struct{}

	since map[string]time.Time // by UID: since when a pod has been without a cgroup
	asked map[uint64]uint64    // by cgroup: what was counted the last time; nil before the first
	// owners are all cgroups and whose they are, and before the same of the time before: a container may have asked and ended.
	owners, before map[uint64]string
	named          map[string]bool // who was named in the log: by UID, or by the number of a cgroup that is no known pod's

	mu      sync.Mutex
	trouble error // why the list is not kept, nil if it is
	begun   time.Time
}

// Wake never blocks.
func (h *hosts) Wake() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// run keeps the list until ctx ends.
func (h *hosts) run(ctx context.Context) {
	if h.mode == policy.Allow {
		if err := cgroup.ForgetHosts(); err != nil {
			h.log.Warn("what is left of a list of pods can't be removed", "error", err)
		}
		return
	}
	h.mu.Lock()
	h.begun = time.Now()
	h.mu.Unlock()
	h.since, h.named = map[string]time.Time{}, map[string]bool{}
	var logged error
	for {
		again := min(h.resync, hostsPeriod)
		pending, err := h.keep(time.Now())
		h.mu.Lock()
		h.trouble = err
		h.mu.Unlock()
		early := errors.Is(err, errNotListed) || errors.Is(err, cgroup.ErrNoHostMaps) // as it is at every start
		if pending || early && time.Since(h.begun) < hostsPatience {
			again = min(again, hostsPause)
		}
		if err != nil && !early && (logged == nil || logged.Error() != err.Error()) {
			h.log.Warn("the list of pods in the node's network can't be kept; trying again", "error", err)
		}
		if !early {
			logged = err
		}
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-time.After(again):
		}
	}
}

var errNotListed = errors.New("the API server has not told yet which pods are on the node")

// unlisted says why pods in the node's network are let through that were not to be, if that has lasted for a while, nil if they are
// not.
func (h *hosts) unlisted() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mode != policy.Block || h.begun.IsZero() || time.Since(h.begun) < hostsPatience {
		return nil
	}
	return h.trouble
}

// keep writes the list, and names who asks without being in it. pending: a pod that is to be let through has no cgroup yet.
func (h *hosts) keep(now time.Time) (pending bool, err error) {
	place := h.place()
	if place == "" {
		return false, cgroup.ErrNoHostMaps
	}
	ids, owners, err := cgroup.Pods(place)
	if err != nil {
		return false, err
	}
	h.before, h.owners = h.owners, owners
	all, known := h.list()
	if !known { // then the list that an agent before this one has left is in force, if there is one
		if listed, err := cgroup.HostsListed(); err != nil {
			return false, err
		} else if !listed {
			return false, errNotListed
		}
		return false, h.name(nil)
	}
	var allowed []uint64
	since := map[string]time.Time{}
	for _, p := range all {
		if !p.HostNetwork || !slices.Contains(h.namespaces, p.Namespace) {
			continue
		}
		if id, there := ids[p.UID]; there {
			allowed = append(allowed, id)
			continue
		}
		since[p.UID] = now
		if first, waits := h.since[p.UID]; waits {
			since[p.UID] = first
		}
		pending = pending || now.Sub(since[p.UID]) < hostsPatience
	}
	h.since = since
	if err := cgroup.AllowHosts(allowed); err != nil {
		return pending, err
	}
	return pending, h.name(all)
}

// name logs who has asked since the last time, each pod once. (What was counted before the first time, another agent knew of.)
func (h *hosts) name(all []pods.Pod) error {
	asked, err := cgroup.HostsAsked()
	if err != nil {
		return err
	}
	before := h.asked
	h.asked = asked
	if before == nil {
		return nil
	}
	for id, calls := range asked {
		if before[id] == calls {
			continue
		}
		uid := cmp.Or(h.owners[id], h.before[id])
		who := cmp.Or(uid, strconv.FormatUint(id, 10))
		if h.named[who] {
			continue
		}
		if len(h.named) >= mostNamed { // pods come and go
			clear(h.named)
		}
		h.named[who] = true
		p := pods.Pod{UID: uid}
		if i := slices.IndexFunc(all, func(p pods.Pod) bool { return p.UID == uid }); i >= 0 {
			p = all[i]
		}
		message := "a pod in the node's network asks for the endpoint, and is refused"
		if h.mode == policy.Audit {
			message = "a pod in the node's network asks for the endpoint: with block it would be refused"
		}
		h.log.Warn(message, "namespace", p.Namespace, "pod", p.Name, "uid", p.UID, "cgroup", id, "calls", calls)
	}
	return nil
}

// hostNetwork pods: which of them are let through.

package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

const (
	// hostsPeriod is how often to write the list, even if no pod is reported to have come or gone.
	hostsPeriod = time.Second
	// hostsPause is how long to wait before looking again for a cgroup that doesn't exist yet, until hostsPatience is over. A
	// pod that is let through must not wait long; one that still has no cgroup after that has other problems.
	hostsPause    = 100 * time.Millisecond
	hostsPatience = time.Minute
)

// hosts maintains the list of hostNetwork pods that are let through. run owns everything that mu does not guard; Wake and
// unlisted may be called from any goroutine.
type hosts struct {
	mode       policy.HostNetwork
	namespaces []string
	resync     time.Duration
	log        *slog.Logger
	// place is the pods' cgroup v2 directory, empty while it is not known.
	place func() string
	// list returns the node's pods; known is false until the API server has listed them.
	list func() (all []pods.Pod, known bool)
	waker

	since map[string]time.Time // by UID: since when a pod has been without a cgroup

	mu      sync.Mutex
	trouble error // why the list is not up to date, nil if it is
	begun   time.Time
}

// run keeps the list until ctx ends.
func (h *hosts) run(ctx context.Context) {
	if h.mode == policy.Allow {
		if err := cgroup.ForgetHosts(); err != nil {
			h.log.Warn("can't remove an old list of hostNetwork pods", "error", err)
		}
		return
	}
	h.mu.Lock()
	h.begun = time.Now()
	h.mu.Unlock()
	h.since = map[string]time.Time{}
	var logged error
	for {
		again := min(h.resync, hostsPeriod)
		pending, err := h.keep(time.Now())
		h.mu.Lock()
		h.trouble = err
		h.mu.Unlock()
		early := errors.Is(err, errNotListed) || errors.Is(err, cgroup.ErrNoMaps) // normal at start-up
		if pending || early && time.Since(h.begun) < hostsPatience {
			again = min(again, hostsPause)
		}
		if err != nil && !early && (logged == nil || logged.Error() != err.Error()) {
			h.log.Warn("can't keep the list of allowed hostNetwork pods up to date; trying again", "error", err)
		}
		if !early {
			logged = err
		}
		select {
		case <-ctx.Done():
			return
		case <-h.waker:
		case <-time.After(again):
		}
	}
}

var errNotListed = errors.New("the API server has not yet listed the pods on this node")

// unlisted says why hostNetwork pods that should be blocked are let through, if that has lasted for a while; nil if they are
// not.
func (h *hosts) unlisted() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mode != policy.Block || h.begun.IsZero() || time.Since(h.begun) < hostsPatience {
		return nil
	}
	return h.trouble
}

// keep writes the list. pending says that a pod that is to be let through has no cgroup yet.
func (h *hosts) keep(now time.Time) (pending bool, err error) {
	place := h.place()
	if place == "" {
		return false, cgroup.ErrNoMaps
	}
	ids, err := cgroup.Pods(place)
	if err != nil {
		return false, err
	}
	all, known := h.list()
	if !known { // then the list of an earlier agent is in force, if there is one
		if listed, err := cgroup.HostsListed(); err != nil {
			return false, err
		} else if !listed {
			return false, errNotListed
		}
		return false, nil
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
	return pending, cgroup.AllowHosts(allowed)
}

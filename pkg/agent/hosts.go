// Pods in the node's network: who of them is let through, and who is not and asks all the same.

package agent

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

const (
	// hostsPause is after what time to look again for a cgroup that is not there yet. A pod that is let through must not wait
	// for long.
	hostsPause = 100 * time.Millisecond
	// hostsPatience is for how long. A pod without a cgroup after that has other troubles, and is looked for at each resync.
	hostsPatience = time.Minute
)

// hosts keeps the list of pods in the node's network that are let through. run owns everything; Wake may be called from any goroutine.
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

	since  map[string]time.Time // by UID: since when a pod has been without a cgroup
	asked  map[uint64]uint64    // by cgroup: what was counted the last time
	named  map[string]bool      // by UID: who was named in the log
	failed bool                 // the last attempt, which the log knows of
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
	h.since, h.asked, h.named = map[string]time.Time{}, map[uint64]uint64{}, map[string]bool{}
	for {
		again := h.resync
		if pending, err := h.keep(time.Now()); pending || errors.Is(err, cgroup.ErrNoHostMaps) {
			again = min(again, hostsPause)
		} else if err != nil && !h.failed {
			h.log.Warn("the list of pods in the node's network can't be kept; trying again", "error", err)
			h.failed = true
		} else if err == nil {
			h.failed = false
		}
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-time.After(again):
		}
	}
}

// keep writes the list, and names who asks without being in it. pending: a pod that is to be let through has no cgroup yet.
func (h *hosts) keep(now time.Time) (pending bool, err error) {
	place := h.place()
	all, known := h.list()
	if place == "" || !known {
		return false, nil
	}
	ids, err := cgroup.Pods(place)
	if err != nil {
		return false, err
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
	return pending, h.name(place, all)
}

// name logs who asks, each pod once.
func (h *hosts) name(place string, all []pods.Pod) error {
	asked, err := cgroup.HostsAsked()
	if err != nil {
		return err
	}
	for id, calls := range asked {
		if h.asked[id] == calls {
			continue
		}
		uid, err := cgroup.PodOf(place, id)
		if err != nil {
			return err
		}
		if h.named[uid] {
			continue
		}
		h.named[uid] = true
		p := pods.Pod{UID: uid}
		if i := slices.IndexFunc(all, func(p pods.Pod) bool { return p.UID == uid }); i >= 0 {
			p = all[i]
		}
		message := "a pod in the node's network asks for the endpoint, and is refused"
		if h.mode == policy.Audit {
			message = "a pod in the node's network asks for the endpoint: with block it would be refused"
		}
		h.log.Warn(message, "namespace", p.Namespace, "pod", p.Name, "uid", p.UID, "calls", calls)
	}
	h.asked = asked
	return nil
}

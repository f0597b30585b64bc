// What happens after a look, beside what the guard itself records: the backend in use, the coverage of the interfaces, and the
// report to the cluster.

package agent

import (
	"context"
	"errors"
	"time"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// observer wakes the goroutine of agent.observe.
type observer struct {
	waker
	backend string // as exported last
}

func newObserver() *observer { return &observer{waker: newWaker()} }

// observe reports after looks until ctx ends.
func (a *agent) observe(ctx context.Context) {
	uncovered := ifwatch.Reporter{Log: a.log}
	if events := a.cluster.events; events != nil {
		uncovered.Notify = events.NotCovered
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.observer.waker:
		case <-timer.C:
		}
		a.exportBackend()
		if pending := a.reportInterfaces(&uncovered); pending {
			timer.Reset(ifwatch.QuietTime)
		}
		a.cluster.looked(a.status())
	}
}

func (a *agent) exportBackend() {
	if a.selector == nil {
		return
	}
	name, version := string(a.selector.Current()), a.selector.Version()
	if exported := name + version; exported != a.observer.backend {
		a.observer.backend = exported
		a.metrics.Backend(name, version)
		a.legacy.Set(a.selector.Current() == rules.Legacy)
	}
}

// reportInterfaces exports what covers the interfaces, and logs those that nothing covers. It reports whether there are some
// that it does not name yet.
func (a *agent) reportInterfaces(r *ifwatch.Reporter) (pending bool) {
	picture := a.links.Picture()
	if errors.Is(picture.Err, ifwatch.ErrNotListed) {
		a.cluster.coverage.Store(&node.Coverage{Err: picture.Err})
		return false
	}
	status := a.status()
	uncovered := ifwatch.Uncovered(picture.Interfaces, a.config.Interfaces)
	if a.metrics.Interfaces(coverage(status, len(picture.Interfaces), len(uncovered))); status.AnyInterface || status.Auditing {
		uncovered, picture.Tunnels = nil, nil
	}
	named, pending := r.Report(time.Now(), uncovered, ifwatch.Uncovered(picture.Tunnels, a.config.Interfaces))
	known := node.Coverage{Err: picture.Err, Uncovered: named}
	if pending && picture.Err == nil && len(named) == 0 {
		known = *a.cluster.coverage.Load() // keep the last result until the new interface has stayed for a while
	}
	a.cluster.coverage.Store(&known)
	return pending
}

// coverage returns how many interfaces iptables' rules in force cover, how many others a layer that covers every interface, and
// how many nothing covers. unnamed is how many no --interface matches.
func coverage(s guard.Status, all, unnamed int) (rule, route, none int) {
	// A pattern without a rule in force covers nothing. One family may be closed by the rule alone, and the other by the route
	// alone.
	if s.Forward && (!s.AnyInterface || judgeOnly(s, rules.LayerName).Forward) {
		rule = all - unnamed
	}
	if s.AnyInterface {
		return rule, all - rule, 0
	}
	return rule, 0, all - rule
}

// remember records for cleanup that an agent is running and what was installed, and for check which backend is in use. It is a
// separate part, so that no file system can hold up a keeper.
func (a *agent) remember(ctx context.Context) {
	reported, marked := false, false
	for {
		var err error
		if !marked {
			err = a.record.MarkRunning()
			marked = err == nil
		}
		if err == nil && a.selector != nil {
			err = a.record.Remember(a.config.Interfaces, a.selector.Current())
		}
		if err != nil && !reported {
			a.log.Warn("recording what was installed failed; trying again; until then, cleanup needs the same --interface flags",
				"error", err)
		}
		reported = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.config.Resync):
		}
	}
}

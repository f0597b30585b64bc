// The way back from enforcing: in audit mode nothing of ours may stop anybody.

package agent

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// lastWords is how long to keep removing rules after their record is gone.
const lastWords = time.Minute

// leftovers removes what an enforcing agent installed on the node, as far as it was recorded, and removes it again if a still
// running agent puts it back. A rule that an admin typed on a node where imds-guard never installed any stays, and so does one
// that was not recorded: both are reported. Only found may be called from any goroutine.
type leftovers struct {
	tables []*rules.Table // empty if the node has no iptables
	policy policy.Policy
	seen   atomic.Pointer[[]string]
	// patterns are the ones recorded last, and at is when: an agent that is ending may put back a rule that it has no time to
	// record.
	patterns []ifpattern.Pattern
	at       time.Time
	// without are the families whose cgroup layer was not in audit mode the last time.
	without []imds.Family
}

// newLeftovers does not touch the node; recorded is the backend that an agent on this node used last.
func newLeftovers(c config.Config, recorded rules.Backend) *leftovers {
	l := &leftovers{policy: c.Policy().WithMode(policy.Enforce)}
	l.seen.Store(&[]string{})
	if selector, err := rules.NewSelector(c.Backend, imds.Families, recorded); err == nil {
		for _, f := range imds.Families {
			l.tables = append(l.tables, rules.NewTable(f, selector))
		}
	}
	return l
}

// letGo removes leftovers until ctx ends.
func (a *agent) letGo(ctx context.Context) {
	for logged := said(""); ; {
		removed, err := a.leftovers.remove(a.record, a.guard.Status())
		if removed {
			a.log.Info("removed what an enforcing agent had put in place")
		}
		if logged.isNew(err) {
			a.log.Error("can't remove what an enforcing agent put in place; it may still block pods; trying again", "error", err)
		}
		before := a.leftovers.found()
		if now := a.leftovers.look(); !slices.Equal(before, now) {
			a.observer.Wake()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.config.Resync):
		}
	}
}

// look names the layers that still have rules like ours in FORWARD. A chain that can't be read counts as having none.
func (l *leftovers) look() (found []string) {
	found = []string{}
	for _, t := range l.tables {
		if read := t.Look(l.policy, func(string) {}); len(read.Rules) > 0 {
			found = append(found, t.ID().String())
		}
	}
	l.seen.Store(&found)
	return found
}

// found returns what the last look found.
func (l *leftovers) found() []string { return *l.seen.Load() }

func (l *leftovers) remove(record rules.Record, s guard.Status) (removed bool, err error) {
	recorded, err := record.Patterns()
	errs := []error{err}
	if len(recorded) > 0 {
		l.patterns, l.at = recorded, time.Now()
	} else if time.Since(l.at) > lastWords {
		l.patterns = nil
	}
	gone, err := rules.Cleanup(imds.Families, l.patterns)
	removed, errs = len(gone) > 0, append(errs, err)
	for _, f := range imds.Families {
		pieces, err := route.Cleanup(f)
		removed, errs = removed || len(pieces) > 0, append(errs, err)
	}
	errs = append(errs, l.removeSockets(s))
	if err := errors.Join(errs...); err != nil || len(recorded) == 0 {
		return removed, err
	}
	return removed, record.Forget()
}

// removeSockets removes the programs that refuse sockets where the layer can't be switched to audit mode.
func (l *leftovers) removeSockets(s guard.Status) error {
	var without []imds.Family
	var errs []error
	for _, one := range s.Layers {
		if one.Name != cgroup.LayerName || one.State == layer.Auditing {
			continue
		}
		if without = append(without, one.Family); slices.Contains(l.without, one.Family) {
			_, err := cgroup.RemoveHooks(one.Family)
			errs = append(errs, err)
		}
	}
	l.without = without
	return errors.Join(errs...)
}

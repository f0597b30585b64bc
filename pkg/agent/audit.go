// The way back from enforcing: in audit mode nothing of ours stops anybody.

package agent

import (
	"context"
	"errors"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// letGo removes what an agent before this one has put in force, as far as it was recorded, until it is gone: a rule that an admin has
// typed on a node where none was ever installed stays.
func (a *agent) letGo(ctx context.Context) {
	for logged := false; ; logged = true {
		removed, err := a.removeEnforced()
		switch {
		case err == nil && removed:
			a.log.Info("removed what an enforcing agent had put in place")
		case err != nil && !logged:
			a.log.Error("can't remove what an enforcing agent put in place; it still blocks pods; trying again", "error", err)
		}
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.config.Resync):
		}
	}
}

func (a *agent) removeEnforced() (removed bool, err error) {
	patterns, err := a.record.Patterns()
	errs := []error{err}
	if len(patterns) > 0 {
		gone, err := rules.Cleanup(imds.Families, patterns)
		removed, errs = len(gone) > 0, append(errs, err)
	}
	for _, f := range imds.Families {
		pieces, err := route.Cleanup(f)
		removed, errs = removed || len(pieces) > 0, append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return removed, err
	}
	return removed, a.record.Forget()
}

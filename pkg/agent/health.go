// The answers of /healthz and /readyz.

package agent

import (
	"fmt"
	"strings"
	"time"
)

// stuckAfter, added to three resync periods, leaves time for a look in which every command hangs until it is killed: reading,
// repairing and reading back.
const stuckAfter = time.Minute

// healthy returns an error that names a stuck keeper, if there is one. That is the only thing that a restart can fix.
func (a *agent) healthy() error {
	if a.elsewhere != "" {
		return nil
	}
	for _, l := range a.guard.Status().Layers {
		last := l.At
		if last.IsZero() {
			last = a.started
		}
		if age := time.Since(last); age > 3*a.config.Resync+stuckAfter {
			return fmt.Errorf("the keeper of %s is stuck: its last look ended %s ago", l.ID, age.Round(time.Second))
		}
	}
	return nil
}

// ready returns an error that says why the node is not known to be protected, if it is not. In audit mode it isn't meant to be,
// and its rollout must be able to go on.
func (a *agent) ready() error {
	s := a.status()
	if s.Protected || s.Auditing && a.elsewhere == "" {
		return nil
	}
	var reasons []string
	for _, l := range s.Layers {
		reasons = append(reasons, l.String())
	}
	return fmt.Errorf("not protected: %s", strings.Join(append(reasons, s.Reasons()...), "; "))
}

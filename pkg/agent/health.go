// What /healthz and /readyz say.

package agent

import (
	"fmt"
	"strings"
	"time"
)

// stuckAfter, beyond three resync periods, leaves time for a look in which every command hangs until it is killed: the
// reading, the repair and the reading back.
const stuckAfter = time.Minute

// healthy says which keeper is stuck, or nil. A restart is the answer to that, and to nothing else.
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

// ready says why the node is not known to be protected, or nil. In audit mode it is not meant to be: a rollout of that has to go on.
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

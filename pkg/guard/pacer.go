// How often a layer may be repaired, and how a fight with another agent is told from single accidents.
package guard

import (
	"time"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/enforce"
)

// pacer holds repairs back.
type pacer struct {
	urgent, calm *rate.Limiter
	failures     int
	notBefore    time.Time
}

// wait returns how long a repair has to wait; with zero it is allowed, and counted.
func (p *pacer) wait(urgent bool) time.Duration {
	if pause := time.Until(p.notBefore); pause > 0 {
		return pause
	}
	limiter := p.calm
	if urgent {
		limiter = p.urgent
	}
	r := limiter.Reserve()
	if delay := r.Delay(); delay > 0 {
		r.Cancel()
		return delay
	}
	return 0
}

// failed notes a repair that did not work and returns the pause before the next.
func (p *pacer) failed() time.Duration {
	pause := maxRetry
	if p.failures < 10 {
		pause = min(maxRetry, minRetry<<p.failures)
	}
	p.failures++
	p.notBefore = time.Now().Add(pause)
	return pause
}

const (
	// A drift that comes within undoneWithin of a repair undoes it; contestedAfter of them in a row are a fight, and it is
	// over when a repair has lasted for quietAfter.
	undoneWithin   = 30 * time.Second
	contestedAfter = 4
	quietAfter     = time.Minute
)

// contest tells a fight: another agent that wants the top of the chain too, or somebody who flushes in a loop.
type contest struct {
	on         bool
	undone     int
	lastRepair time.Time
}

// drifted notes a drift and reports whether it makes the contest begin.
func (c *contest) drifted(now time.Time) (began bool) {
	if now.Sub(c.lastRepair) > undoneWithin {
		if !c.on {
			c.undone = 0
		}
		return false
	}
	c.undone++
	began = !c.on && c.undone >= contestedAfter
	c.on = c.on || began
	return began
}

func (c *contest) repaired(now time.Time) { c.lastRepair = now }

// over reports whether the contest has come to its end.
func (c *contest) over(now time.Time, s enforce.State) bool {
	return c.on && !s.Drifted() && now.Sub(c.lastRepair) >= quietAfter
}

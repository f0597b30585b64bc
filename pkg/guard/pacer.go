// How often a layer may be repaired.

package guard

import (
	"time"

	"golang.org/x/time/rate"
)

const (
	// Repairs of a state that lets packets through are done at once up to burst, then at this rate, at which two agents
	// that both want the top of the chain cost a few per cent of a core for as long as they fight.
	urgentPerSecond = 5
	urgentBurst     = 100
	// calmPeriod is the pause between repairs of a state in which packets are stopped all the same.
	calmPeriod = 10 * time.Second
	// The pause after a failed repair doubles from minRetry to maxRetry. It is short, since packets may pass meanwhile.
	minRetry = 10 * time.Millisecond
	maxRetry = 2 * time.Second
)

// pacer holds repairs back.
type pacer struct {
	urgent, calm *rate.Limiter
	// The pause after failed repairs is for what they failed at, and holds up nothing else.
	failures  int
	failedAt  string
	notBefore time.Time
}

func newPacer() pacer {
	return pacer{
		urgent: rate.NewLimiter(urgentPerSecond, urgentBurst),
		calm:   rate.NewLimiter(rate.Every(calmPeriod), 1),
	}
}

// wait returns how long a repair of something, in words, has to wait; with zero it is allowed, and counted.
func (p *pacer) wait(urgent bool, what string) time.Duration {
	if what != p.failedAt {
		p.failures, p.notBefore = 0, time.Time{}
	}
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
func (p *pacer) failed(at string) time.Duration {
	p.failedAt = at
	pause := maxRetry
	if p.failures < 10 {
		pause = min(maxRetry, minRetry<<p.failures)
	}
	p.failures++
	p.notBefore = time.Now().Add(pause)
	return pause
}

// Pacing: how often a layer may be repaired.

package guard

import (
	"time"

	"golang.org/x/time/rate"
)

const (
	// States that let packets through are repaired at once up to the burst, then at this rate. At this rate, two agents that
	// both want the top of the chain use a few per cent of a core for as long as they fight.
	urgentPerSecond = 5
	urgentBurst     = 100
	// calmPeriod is the pause between repairs of a state in which packets are stopped anyway.
	calmPeriod = 10 * time.Second
	// The pause after a failed repair doubles from minRetry to maxRetry. It is kept short, since packets may get through
	// meanwhile.
	minRetry = 10 * time.Millisecond
	maxRetry = 2 * time.Second
)

// pacer limits the rate of repairs.
type pacer struct {
	urgent, calm *rate.Limiter
	// The pause after failed repairs applies only to what they failed at, and delays nothing else.
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

// wait returns how long a repair has to wait, where what describes the fault; if it is zero, the repair is allowed and counted.
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

// failed records a failed repair and returns the pause before the next.
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

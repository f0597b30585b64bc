// Telling a fight with another agent from isolated accidents.

package guard

import "time"

const (
	// A drift within undoneWithin of a repair undoes that repair. It is a fight once fightCount of them came in a row, over at
	// least fightTime: a restart of dockerd or a reload of firewalld undoes as many within a few seconds and is not a fight.
	// The fight is over when a repair has lasted for quietAfter.
	undoneWithin = 30 * time.Second
	fightCount   = 4
	fightTime    = 10 * time.Second
	quietAfter   = time.Minute
)

// fight tracks a fight: with another agent that also wants the top of the chain, or with something that flushes in a loop.
type fight struct {
	on         bool
	undone     int
	since      time.Time // the first of undone
	lastRepair time.Time
}

// drifted records a drift and reports whether it starts a fight.
func (f *fight) drifted(now time.Time) (began bool) {
	if now.Sub(f.lastRepair) > undoneWithin {
		if !f.on {
			f.undone = 0
		}
		return false
	}
	if f.undone == 0 {
		f.since = now
	}
	f.undone++
	began = !f.on && f.undone >= fightCount && now.Sub(f.since) >= fightTime
	f.on = f.on || began
	return began
}

func (f *fight) repaired(now time.Time) { f.lastRepair = now }

// over reports whether the fight has ended.
func (f *fight) over(now time.Time, drifted bool) bool {
	return f.on && !drifted && now.Sub(f.lastRepair) >= quietAfter
}

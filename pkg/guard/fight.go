// How a fight with another agent is told from single accidents.

package guard

import "time"

const (
	// A drift that comes within undoneWithin of a repair undoes it. That is a fight when fightCount of them have come in a
	// row, over fightTime or longer: one start of dockerd or one reload of firewalld undoes as many within a few seconds,
	// and is no fight. It is over when a repair has lasted for quietAfter.
	undoneWithin = 30 * time.Second
	fightCount   = 4
	fightTime    = 10 * time.Second
	quietAfter   = time.Minute
)

// fight is another agent that wants the top of the chain too, or somebody who flushes in a loop.
type fight struct {
	on         bool
	undone     int
	since      time.Time // the first of undone
	lastRepair time.Time
}

// drifted notes a drift and reports whether it makes the fight begin.
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

// over reports whether the fight has come to its end.
func (f *fight) over(now time.Time, drifted bool) bool {
	return f.on && !drifted && now.Sub(f.lastRepair) >= quietAfter
}

package guard

import (
	"testing"
	"testing/synctest"
	"time"
)

// Repairs are allowed at once up to the burst, and then one by one.
func TestPacerWaits(t *testing.T) {
	for _, c := range []struct {
		name   string
		urgent bool
		burst  int
		period time.Duration
	}{{"urgent", true, urgentBurst, time.Second / urgentPerSecond}, {"calm", false, 1, calmPeriod}} {
		synctest.Test(t, func(t *testing.T) {
			p := newPacer()
			for i := range c.burst {
				if wait := p.wait(c.urgent, ""); wait != 0 {
					t.Fatalf("%s: repair %d waits for %s", c.name, i+1, wait)
				}
			}
			for range 3 {
				// Asking does not count: whoever has asked ten times waits no longer than who has asked once.
				for range 10 {
					if wait := p.wait(c.urgent, ""); wait != c.period {
						t.Errorf("%s: after the burst %s", c.name, wait)
					}
				}
				time.Sleep(c.period)
				if wait := p.wait(c.urgent, ""); wait != 0 {
					t.Errorf("%s: after a pause %s", c.name, wait)
				}
			}
			if p.wait(!c.urgent, "") != 0 {
				t.Errorf("%s: the others wait too", c.name)
			}
		})
	}
}

// The pause after a failure doubles up to a bound, and holds for every repair.
func TestPacerBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPacer()
		want := minRetry
		for i := range 100 {
			pause := p.failed("")
			if pause != want {
				t.Fatalf("the pause after failure %d is %s, want %s", i+1, pause, want)
			}
			if urgent, calm := p.wait(true, ""), p.wait(false, ""); urgent != pause || calm != pause {
				t.Fatalf("after failure %d, repairs wait for %s and %s", i+1, urgent, calm)
			}
			time.Sleep(pause)
			want = min(2*want, maxRetry)
		}
		// What is allowed just then is counted like every other.
		if first, second := p.wait(false, ""), p.wait(false, ""); first != 0 || second != calmPeriod {
			t.Errorf("at the end of a pause: %s, then %s", first, second)
		}
	})
}

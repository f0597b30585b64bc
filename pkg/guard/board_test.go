package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// A reading is judged by what has happened since, with exact times.
func TestPlaceIsJudged(t *testing.T) {
	const fresh = 30 * time.Second
	start := time.Now()
	at := func(ms int) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	asked := func(ms int) func(*place) { return func(p *place) { p.asked(at(ms)) } }
	shown := func(s layer.State, ms int) func(*place) {
		return func(p *place) { p.show(layer.Reading{State: s, Rules: []string{"a rule"}}, at(ms), at(ms)) }
	}
	begun := (*place).answering
	in, out := shown(layer.Enforced, 0), shown(layer.Missing, 0)
	type steps = []func(*place)
	for _, c := range []struct {
		name   string
		steps  steps
		now    int // the last moment of this state, or the first
		state  layer.State
		detail string // a part of it
	}{
		{"nobody has looked", nil, 0, layer.Unknown, "not checked yet"},
		{"woken and nobody has looked", steps{asked(0)}, 5000, layer.Unknown, "not checked yet"},
		{"just fresh", steps{in}, 30000, layer.Enforced, ""},
		{"just out of date", steps{in}, 30001, layer.Unknown, "the last look was 30s ago"},
		{"a drift just fresh", steps{out}, 30000, layer.Missing, ""},
		{"a drift out of date", steps{out}, 30001, layer.Unknown, "the last look was 30s ago"},

		{"a wake just waits", steps{in, asked(100)}, 1100, layer.Enforced, ""},
		{"a wake waits too long", steps{in, asked(100)}, 1101, layer.Unknown, "changed 1s ago"},
		{"the oldest wake counts", steps{in, asked(100), asked(900)}, 1101, layer.Unknown, "changed 1s ago"},
		{"a drift is none the better for a wake", steps{out, asked(100)}, 5000, layer.Missing, ""},

		{"a look has begun, and hangs", steps{in, asked(100), begun}, 1101, layer.Unknown, "changed 1s ago"},
		{"woken again meanwhile", steps{in, asked(100), begun, asked(900)}, 1101, layer.Unknown, "changed 1s ago"},
		{"one look after another hangs", steps{in, asked(100), begun, asked(900), begun}, 1101, layer.Unknown, "changed 1s ago"},
		{"a look that nobody asked for", steps{in, begun}, 5000, layer.Enforced, ""},
		{"woken in such a look", steps{in, begun, asked(100)}, 1101, layer.Unknown, "changed 1s ago"},

		{"answered", steps{in, asked(100), begun, shown(layer.Enforced, 200)}, 5000, layer.Enforced, ""},
		{"answered, then just out of date", steps{in, asked(100), begun, shown(layer.Enforced, 200)}, 30201, layer.Unknown, "30s ago"},
		{"woken since that look began", steps{in, asked(100), begun, asked(300), shown(layer.Enforced, 400)}, 1300, layer.Enforced, ""},
		{"woken since it began, too long ago", steps{in, asked(100), begun, asked(300), shown(layer.Enforced, 400)}, 1301, layer.Unknown, "changed 1s ago"},
		{"doubted", steps{in, func(p *place) { p.doubt("a doubt") }}, 0, layer.Unknown, "a doubt"},
		{"doubted, then read", steps{in, func(p *place) { p.doubt("a doubt") }, in}, 0, layer.Enforced, ""},
	} {
		p := newBoard(fresh / freshPeriods).add(layer.ID{Name: "fake", Family: imds.IPv4})
		for _, step := range c.steps {
			step(p)
		}
		l := p.status(at(c.now), fresh)
		if l.State != c.state || !strings.Contains(l.Detail, c.detail) || (l.Detail == "") != (c.detail == "") {
			t.Errorf("%s: %s (%q), want %s (%q)", c.name, l.State, l.Detail, c.state, c.detail)
		}
		if (l.Rules != nil) != (l.State != layer.Unknown) {
			t.Errorf("%s: %s with the rules %q", c.name, l.State, l.Rules)
		}
	}
}

// Verified is when the layer was last read as stopping packets; what is read otherwise leaves it alone.
func TestVerified(t *testing.T) {
	start := time.Now()
	p := newBoard(resync).add(layer.ID{})
	for i, c := range []struct {
		state    layer.State
		verified int // the reading that it was verified by, -1 for none
	}{{layer.Missing, -1}, {layer.Enforced, 1}, {leaking, 1}, {untidy, 3}, {layer.Unknown, 3}, {layer.Unsupported, 3}} {
		p.show(layer.Reading{State: c.state}, start, start.Add(time.Duration(i)*time.Second))
		want := time.Time{}
		if c.verified >= 0 {
			want = start.Add(time.Duration(c.verified) * time.Second)
		}
		if l := p.status(start, time.Minute); !l.Verified.Equal(want) || !l.At.Equal(start.Add(time.Duration(i)*time.Second)) {
			t.Errorf("after reading %d, %s: read at %s, verified at %s", i, c.state, l.At, l.Verified)
		}
	}
}

// It also counts as proof that no packet of the family crosses the node.
func TestNoPathIsVerified(t *testing.T) {
	now := time.Now()
	p := newBoard(resync).add(layer.ID{})
	p.show(layer.Reading{State: layer.Unsupported, NoPath: true}, now, now)
	if l := p.status(now, time.Minute); !l.Verified.Equal(now) {
		t.Errorf("verified at %s", l.Verified)
	}
}

// A proof no longer counts when the reading may be out of date: neither that there is no path, nor that every interface is
// covered.
func TestProofsEnd(t *testing.T) {
	now := time.Now()
	for _, r := range []layer.Reading{
		{State: layer.Unsupported, NoPath: true}, {State: layer.Enforced, AnyInterface: true},
	} {
		for how, late := range map[string]func(*place) time.Duration{
			"an old reading":         func(*place) time.Duration { return time.Hour },
			"a wake that waits":      func(p *place) time.Duration { p.asked(now); return 2 * time.Second },
			"a doubt":                func(p *place) time.Duration { p.doubt("a doubt"); return 0 },
			"a look that never ends": func(p *place) time.Duration { p.asked(now); p.answering(); return 2 * time.Second },
		} {
			p := newBoard(resync).add(layer.ID{Family: imds.IPv6})
			p.show(r, now, now)
			l := p.status(now.Add(late(p)), 3*resync)
			if l.State != layer.Unknown || l.NoPath || l.AnyInterface {
				t.Errorf("%s after %+v: %+v", how, r, l.Reading)
			}
			v4 := LayerStatus{ID: layer.ID{Family: imds.IPv4}, Reading: layer.Reading{State: layer.Enforced}}
			if s := Judge([]LayerStatus{v4, l}, Evidence{}); s.Protected {
				t.Errorf("%s after %+v: protected", how, r)
			}
		}
	}
}

func TestLayerStatusForAPerson(t *testing.T) {
	l := LayerStatus{ID: layer.ID{Name: "fake", Family: imds.IPv6}, Reading: layer.Reading{State: layer.Enforced}}
	if got := l.String(); got != "fake ipv6 rules are enforced" {
		t.Errorf("without a detail: %q", got)
	}
	l.State, l.Detail = layer.Missing, "one is not there"
	if got := l.String(); got != "fake ipv6 rules are missing: one is not there" {
		t.Errorf("with a detail: %q", got)
	}
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/probe"
)

// counting is a family's layers, with counters that a probe increases.
func counting(counters map[string]uint64) (list []guard.LayerStatus) {
	for _, name := range []string{"iptables", "route"} {
		list = append(list, guard.LayerStatus{
			ID: layer.ID{Name: name, Family: imds.IPv4}, Reading: layer.Reading{State: layer.Enforced, Blocked: counters[name]},
		})
	}
	return list
}

// The result of a probe, by what was seen of it and who counted it. A failure to send it is not a layer's fault.
func TestProbeResult(t *testing.T) {
	for _, c := range []struct {
		name       string
		counted    []string
		letThrough string
		err        error
		want       string
	}{
		{"stopped", []string{"iptables"}, "", nil, "forward ipv4 stopped by iptables"},
		{"counted by two", []string{"iptables", "route"}, "", nil, "forward ipv4 stopped by iptables and route"},
		{"nobody has counted it", nil, "", nil, "forward ipv4 error: no layer counted it, and no answer came"},
		{"answered", nil, "the endpoint answered", nil, "forward ipv4 answered: the endpoint answered"},
		{"answered, and pods were stopped meanwhile", []string{"iptables"}, "it left", nil, "forward ipv4 answered by iptables: it left"},
		{"answered, and not tidied up", nil, "it left", errors.New("no"), "forward ipv4 answered: it left"},
		{"not sent", nil, "", errors.New("no"), "forward ipv4 error: no"},
		{"nothing to stop", nil, "", fmt.Errorf("x: %w", probe.ErrNotForwarding), "forward ipv4 stopped: x: " + probe.ErrNotForwarding.Error()},
	} {
		counters := map[string]uint64{"iptables": 7, "route": 7}
		own := newOwnPackets()
		p := probes{look: func(context.Context) []guard.LayerStatus { return counting(counters) }, own: own}
		got, _ := p.one(t.Context(), "forward", imds.IPv4, 1, "", func([]guard.LayerStatus) (string, error) {
			for _, name := range c.counted {
				counters[name]++
			}
			return c.letThrough, c.err
		})
		if got.String() != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		for _, l := range counting(counters) {
			if others := own.others(l.ID, l.Blocked); others != 7 {
				t.Errorf("%s: of %d packets %d are said to be others'", c.name, l.Blocked, others)
			}
		}
	}
}

// The count of others' packets never decreases, whenever one of our own probes gets counted.
func TestOwnPackets(t *testing.T) {
	o, id := newOwnPackets(), layer.ID{Name: "route", Family: imds.IPv6}
	l := []guard.LayerStatus{{ID: id}}
	var last uint64
	for _, step := range []struct {
		do      func()
		counted uint64
		want    uint64
	}{
		{func() {}, 5, 5},
		{func() { o.expect(l, 1) }, 5, 5},
		{func() {}, 6, 5},
		{func() {}, 8, 7},
		{func() { o.expect(l, 1) }, 8, 7},
		{func() { o.missed(l, 1) }, 8, 7},
		{func() {}, 9, 8},
		{func() {}, 0, 8}, // a new agent's layer has yet to read
	} {
		step.do()
		got := o.others(id, step.counted)
		if got != step.want || got < last {
			t.Errorf("of %d counted %d are others', want %d", step.counted, got, step.want)
		}
		last = got
	}
	if none := (*ownPackets)(nil); none.others(id, 3) != 3 {
		t.Error("without probes somebody's packets are not counted")
	}
}

// What probes prove: an answer outweighs everything, an error degrades, and being stopped adds nothing.
func TestProbesEvidence(t *testing.T) {
	results := []Probe{{Path: "forward", Result: probe.Stopped}}
	if e := probesEvidence(results); e.Answered != "" || e.NotProbed != nil {
		t.Errorf("stopped: %+v", e)
	}
	results = append(results, Probe{Path: "socket", Family: imds.IPv6, Result: probe.Error, Detail: "no"})
	if e := probesEvidence(results); e.Answered != "" || e.NotProbed == nil || e.NotProbed.Error() != "socket ipv6 error: no" {
		t.Errorf("an error: %+v", e)
	}
	results = append(results, Probe{Path: "socket", Family: imds.IPv4, Result: probe.Answered, Detail: "yes"})
	if e := probesEvidence(results); e.Answered != "" || e.Connected != "socket ipv4 answered: yes" {
		t.Errorf("a socket: %+v", e)
	}
	results = append(results, Probe{Path: "forward", Family: imds.IPv4, Result: probe.Answered, Detail: "yes"})
	if e := probesEvidence(results); e.Answered != "forward ipv4 answered: yes" {
		t.Errorf("an answer: %+v", e)
	}
}

// An answered probe counts until the same probe is seen stopped: an error proves nothing.
func TestAnswersAreKept(t *testing.T) {
	of := func(path, result string) Probe { return Probe{Path: path, Family: imds.IPv4, Result: result} }
	known := []Probe{of("forward", probe.Answered), of("socket", probe.Stopped)}
	for _, step := range []struct{ forward, answered string }{
		{probe.Error, "forward ipv4 answered"}, {"", "forward ipv4 answered"}, {probe.Error, "forward ipv4 answered"},
		{probe.Answered, "forward ipv4 answered"}, {probe.Stopped, ""}, {probe.Error, ""},
	} {
		now := []Probe{of("socket", probe.Stopped)}
		if step.forward != "" {
			now = append(now, of("forward", step.forward))
		}
		known = withAnswers(known, now)
		if e := probesEvidence(known); e.Answered != step.answered || (e.NotProbed != nil) != (step.forward == probe.Error) {
			t.Errorf("after %q: %+v", step.forward, e)
		}
	}
}

// A changed result is logged once. What was not stopped is soon tried again. Pods wait for the first probes, but not for long.
func TestProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var stops atomic.Bool
		stops.Store(true)
		var at []time.Duration
		begun := time.Now()
		p := &prober{
			interval: 5 * time.Minute, log: slog.New(slog.NewTextHandler(&log, nil)),
			ended: func([]Probe) { at = append(at, time.Since(begun)) },
		}
		p.makeAll = func(context.Context) []Probe {
			time.Sleep(time.Second)
			if stops.Load() {
				return []Probe{{Path: "forward", Family: imds.IPv4, Result: probe.Stopped, StoppedBy: []string{"route"}}}
			}
			return []Probe{{Path: "forward", Family: imds.IPv4, Result: probe.Answered, Detail: "yes"}}
		}
		if !p.pending() {
			t.Error("before the first probes nobody waits for them")
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { p.run(ctx); close(ended) }()
		time.Sleep(2 * time.Second)
		if p.pending() || p.evidence().Answered != "" {
			t.Error("after the first probes")
		}
		stops.Store(false)
		time.Sleep(6 * time.Minute)
		if p.evidence().Answered == "" {
			t.Error("an answer is no evidence")
		}
		stops.Store(true)
		time.Sleep(time.Minute)
		if p.evidence().Answered != "" {
			t.Error("the answer is still evidence")
		}
		cancel()
		<-ended
		time.Sleep(14 * time.Minute)
		if e := p.evidence(); e.NotProbed != nil {
			t.Errorf("14 minutes after the last: %v", e.NotProbed)
		}
		time.Sleep(2 * time.Minute)
		if e := p.evidence(); e.NotProbed == nil {
			t.Error("probes that end no more are no trouble")
		}
		want := []time.Duration{1, 302, 333, 364}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(at, want) {
			t.Errorf("probed at %v, want %v", at, want)
		}
		for line, n := range map[string]int{"was stopped": 2, "was let through": 1} {
			if got := strings.Count(log.String(), line); got != n {
				t.Errorf("%d lines say that it %s, want %d:\n%s", got, line, n, &log)
			}
		}
	})
}

// No probe delays the agent's exit, and a round that is cut short proves nothing.
func TestProberEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := &prober{interval: time.Minute, log: slog.New(slog.DiscardHandler), ended: func([]Probe) { t.Error("results were published") }}
		p.makeAll = func(context.Context) []Probe {
			cancel()
			return []Probe{{Path: "forward", Result: probe.Answered}}
		}
		p.run(ctx)
		if p.evidence().Answered != "" {
			t.Error("they are evidence")
		}
	})
}

// A layer that is missing in the second look, or has another place there, does not cause a crash.
func TestProbeLooksDiffer(t *testing.T) {
	looks := [][]guard.LayerStatus{counting(map[string]uint64{"iptables": 7, "route": 7}), counting(map[string]uint64{"iptables": 7, "route": 8})[1:]}
	p := probes{look: func(context.Context) (l []guard.LayerStatus) { l, looks = looks[0], looks[1:]; return l }}
	got, _ := p.one(t.Context(), "forward", imds.IPv4, 1, "", func([]guard.LayerStatus) (string, error) { return "", nil })
	if got.String() != "forward ipv4 stopped by route" {
		t.Error(got)
	}
}

// A probe of one layer proves something only if the layer was in force before and after it.
func TestProbeOfALayer(t *testing.T) {
	for _, c := range []struct {
		before, after layer.State
		proves        bool
	}{
		{layer.Enforced, layer.Enforced, true}, {layer.Missing, layer.Enforced, false}, {layer.Enforced, layer.Unknown, false},
	} {
		states := []layer.State{c.before, c.after}
		p := probes{look: func(context.Context) []guard.LayerStatus {
			l := counting(nil)
			l[1].State, states = states[0], states[1:]
			return l
		}}
		_, proves := p.one(t.Context(), probe.PathUnnamed, imds.IPv4, 1, "route", func([]guard.LayerStatus) (string, error) { return "it left", nil })
		if proves != c.proves {
			t.Errorf("%s before, %s after: proves %t", c.before, c.after, proves)
		}
	}
}

func TestPendingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &prober{interval: time.Minute}
		if !p.pending() {
			t.Error("not pending at first")
		}
		time.Sleep(firstProbes)
		if p.pending() {
			t.Error("pods wait for probes that don't end")
		}
		if (&prober{}).pending() {
			t.Error("pods wait for probes that nobody makes")
		}
	})
}

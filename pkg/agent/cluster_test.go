package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

var (
	first  = layer.ID{Name: "iptables", Family: imds.IPv4}
	second = layer.ID{Name: "iptables", Family: imds.IPv6}
)

// sink is an API server that takes every event. It is the transport itself, so that no connection is opened.
type sink struct{ events []string }

var eventText = regexp.MustCompile(`IMDSRules[A-Za-z]+|iptables ipv[46]|were [a-z]+ and`)

func (s *sink) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	// What is in the event, of words that matter: its reason stands in front of its message on the wire.
	words := eventText.FindAllString(string(body), -1)
	if r.Method == http.MethodPatch { // the same once more
		words = append([]string{"again"}, words...)
	}
	s.events = append(s.events, strings.Join(words, " "))
	answer := io.NopCloser(strings.NewReader(`{"kind":"Event","apiVersion":"v1"}`))
	return &http.Response{StatusCode: 201, Header: http.Header{"Content-Type": {"application/json"}}, Body: answer, Request: r}, nil
}

// heard returns the events since the last call.
func (s *sink) heard() string {
	synctest.Wait()
	defer func() { s.events = nil }()
	return strings.Join(s.events, ", ")
}

func (s *sink) connect(t *testing.T) *node.Events {
	t.Helper()
	api, err := node.API(&rest.Config{Host: "https://api", Transport: s}, "v1", func(string, bool) {})
	if err != nil {
		t.Fatal(err)
	}
	_, events := node.Connect(t.Context(), api, "n")
	return events
}

// value returns the sum of a metric's series with a given label value.
func value(t *testing.T, m *metrics.Metrics, name, label string) (sum float64) {
	t.Helper()
	m.Status = func() guard.Status { return guard.Status{} }
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			for _, l := range s.GetLabel() {
				if f.GetName() == name && l.GetValue() == label {
					sum += s.GetCounter().GetValue()
				}
			}
		}
	}
	return sum
}

// The cluster is told once about each repaired drift, and about a fight instead of its repairs.
func TestRecorderTellsTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &sink{}
		c := newCluster()
		c.events = s.connect(t)
		m := metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, nil, nil)
		r := recorder{m, c, func(layer.ID) {}}
		contended := func(id layer.ID, on bool) func() {
			return func() {
				c.looked(guard.Status{Layers: []guard.LayerStatus{{ID: id, Contended: on}}})
			}
		}
		drift := func(id layer.ID, state layer.State) func() { return func() { r.Drift(id, state) } }
		repair := func(id layer.ID, ok bool) func() { return func() { r.Repaired(id, ok, time.Second) } }
		for i, step := range []struct {
			do    func()
			event string // the words that matter
		}{
			{repair(first, true), ""}, // an install that failed at first
			{drift(first, layer.Missing), ""},
			{repair(first, false), ""},
			{repair(second, true), ""},
			{repair(first, true), "IMDSRulesRepaired iptables ipv4 were missing and"},
			{repair(first, true), ""},
			{drift(first, layer.Missing), ""},
			{drift(first, rules.Shadowed), ""},
			{drift(second, layer.Missing), ""},
			{repair(first, true), "IMDSRulesRepaired iptables ipv4 were shadowed and"},
			{contended(first, false), ""},
			{contended(first, true), "IMDSRulesContended iptables ipv4"},
			{contended(first, true), ""},
			{drift(first, layer.Missing), ""},
			{repair(first, true), ""},
			{repair(second, true), "IMDSRulesRepaired iptables ipv6 were missing and"},
			{contended(second, true), "IMDSRulesContended iptables ipv6"},
			{contended(first, false), ""},
			{repair(first, true), ""}, // that drift was repaired in the fight
			{drift(first, rules.Shadowed), ""},
			{repair(first, true), "again iptables ipv4 were shadowed and"},
			{contended(first, true), "again iptables ipv4"},
		} {
			step.do()
			if got := s.heard(); got != step.event {
				t.Errorf("step %d: the cluster hears %q, want %q", i, got, step.event)
			}
		}
		for _, c := range []struct {
			name, label string
			want        float64
		}{
			{"imds_guard_drift_total", "missing", 4}, {"imds_guard_drift_total", "shadowed", 2},
			{"imds_guard_repairs_total", "success", 9}, {"imds_guard_repairs_total", "error", 1},
		} {
			if got := value(t, m, c.name, c.label); got != c.want {
				t.Errorf("%s of %s is %v, want %v", c.name, c.label, got, c.want)
			}
		}
	})
}

// Where the API is not used, nobody is told, and nothing else differs.
func TestRecorderWithoutACluster(t *testing.T) {
	c := newCluster()
	r := recorder{metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, nil, nil), c, func(layer.ID) {}}
	r.Drift(first, layer.Missing)
	r.Repaired(first, true, time.Second)
	c.looked(guard.Status{Layers: []guard.LayerStatus{{ID: first, Contended: true}}})
	if len(c.drift) != 0 || !c.contended[first] {
		t.Errorf("drift %v, contended %v", c.drift, c.contended)
	}
	if known := c.coverage.Load(); !errors.Is(known.Err, ifwatch.ErrNotListed) {
		t.Errorf("before any listing the coverage is %+v", known)
	}
}

// quietNode is a client that says what the Node is, and takes every patch.
type quietNode struct{ requests *int }

func (n quietNode) Get(context.Context) (*corev1.Node, error) {
	*n.requests++
	return &corev1.Node{}, nil
}

func (n quietNode) Patch(context.Context, types.PatchType, []byte, ...string) (*corev1.Node, error) {
	*n.requests++
	return &corev1.Node{}, nil
}

// A look makes the reporter ask what is known.
func TestLookWakesTheReporter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, requests := 0, 0
		c := newCluster()
		c.reporter = node.New(quietNode{&requests}, func() node.Knowledge {
			asked++
			return node.Knowledge{Condition: node.Condition{Status: corev1.ConditionTrue}}
		}, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { c.reporter.Run(ctx); close(done) }()
		synctest.Wait()
		before := asked
		c.looked(guard.Status{})
		synctest.Wait()
		if asked != before+1 {
			t.Errorf("asked %d times before the look, %d after", before, asked)
		}
		cancel()
		<-done
	})
}

// The API is used in a cluster, with a kubeconfig, and where it is asked for.
func TestUsesAPI(t *testing.T) {
	for _, c := range []struct {
		use        config.Use
		kubeconfig string
		inCluster  bool
		want       bool
	}{
		{config.Auto, "", false, false},
		{config.Auto, "file", false, true},
		{config.Auto, "", true, true},
		{config.On, "", false, true},
		{config.Off, "file", true, false},
	} {
		host := ""
		if c.inCluster {
			host = "10.0.0.1"
		}
		t.Setenv("KUBERNETES_SERVICE_HOST", host)
		t.Setenv("KUBERNETES_SERVICE_PORT", "443")
		if got := UsesAPI(config.Config{Kubernetes: c.use, Kubeconfig: c.kubeconfig}); got != c.want {
			t.Errorf("%+v: %t", c, got)
		}
	}
}

// If something that the API needs is missing, the agent runs without the API and says why.
func TestConnect(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "kubeconfig")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const kubeconfig = "clusters: [{name: c, cluster: {server: 'SERVER'}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	for _, c := range []struct {
		name      string
		config    config.Config
		connected bool
		says      string
	}{
		{"not wanted", config.Config{Kubernetes: config.Off, NodeName: "n"}, false, ""},
		{"no name", config.Config{Kubernetes: config.On}, false, "--node-name: it is not set"},
		{"not in a pod", config.Config{Kubernetes: config.On, NodeName: "n"}, false, "unable to load in-cluster configuration"},
		{"a server that is none", config.Config{Kubernetes: config.On, NodeName: "n",
			Kubeconfig: file(strings.Replace(kubeconfig, "SERVER", "http://[::1", 1))}, false, "continuing without it"},
		{"all there", config.Config{Kubernetes: config.On, NodeName: "n",
			Kubeconfig: file(strings.Replace(kubeconfig, "SERVER", "https://127.0.0.1:1", 1))}, true, ""},
	} {
		var log bytes.Buffer
		a := &agent{config: c.config, cluster: newCluster(), metrics: metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, nil, nil), log: slog.New(slog.NewTextHandler(&log, nil))}
		a.connect(t.Context(), Build{Version: "v1"})
		if (a.cluster.reporter != nil) != c.connected || (a.cluster.events != nil) != c.connected {
			t.Errorf("%s: %+v", c.name, a.cluster)
		}
		a.cluster.looked(guard.Status{}) // nothing is left locked
		if !strings.Contains(log.String(), c.says) || (log.Len() > 0) != (c.says != "") {
			t.Errorf("%s: the log is %q", c.name, log.String())
		}
	}
}

// The libraries' log lines are passed on at debug level, and their verbose ones not at all.
func TestLogOfTheLibraries(t *testing.T) {
	for _, c := range []struct {
		ours, theirs slog.Level
		passed       bool
	}{
		{slog.LevelDebug, slog.LevelError, true},
		{slog.LevelDebug, slog.LevelInfo, true},
		{slog.LevelDebug, slog.LevelInfo - 1, false},
		{slog.LevelDebug, slog.LevelDebug, false},
		{slog.LevelInfo, slog.LevelError, false},
	} {
		var log bytes.Buffer
		handler := slog.NewTextHandler(&log, &slog.HandlerOptions{Level: c.ours})
		slog.New(debug{handler}).With("a", 1).WithGroup("g").Log(t.Context(), c.theirs, "said", "b", 2)
		if got := log.String(); (got != "") != c.passed || c.passed && (!strings.Contains(got, "level=DEBUG msg=said a=1 g.b=2")) {
			t.Errorf("at %s, %s: %q", c.ours, c.theirs, got)
		}
	}
}

// guardOf is a guard that has looked once at layers in these states.
func guardOf(t *testing.T, states ...layer.State) *guard.Guard {
	t.Helper()
	c := guard.Config{Resync: time.Minute, Log: slog.New(slog.DiscardHandler), Recorder: recorder{metrics.New(metrics.Build{Version: "", Commit: "", Mode: "enforce"}, nil, nil), newCluster(), func(layer.ID) {}}}
	for i, s := range states {
		c.Layers = append(c.Layers, stillLayer{id: layer.ID{Name: "fake", Family: imds.Families[i]}, state: s})
	}
	g := guard.New(c)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	g.Run(ctx) // it looks once before it notices
	return g
}

// What the reporter says about the node: the condition depends on layers and interfaces, admission on the layers alone.
func TestKnown(t *testing.T) {
	for _, c := range []struct {
		name      string
		states    []layer.State
		coverage  node.Coverage
		elsewhere string
		reason    string
		admit     bool
	}{
		{"all in force", []layer.State{layer.Enforced, layer.Enforced}, node.Coverage{}, "", node.ReasonVerified, true},
		{"one missing", []layer.State{layer.Enforced, layer.Missing}, node.Coverage{}, "", node.ReasonNotInForce, false},
		{"an interface uncovered", []layer.State{layer.Enforced, layer.Enforced}, node.Coverage{Uncovered: []string{"cali1"}}, "", node.ReasonNotCovered, true},
		{"not listed", []layer.State{layer.Enforced, layer.Enforced}, node.Coverage{Err: errors.New("not listed")}, "", node.ReasonNotVerified, true},
		{"elsewhere", []layer.State{layer.Enforced, layer.Enforced}, node.Coverage{}, "not the node", node.ReasonNotVerified, false},
	} {
		a := &agent{guard: guardOf(t, c.states...), cluster: newCluster(), elsewhere: c.elsewhere}
		a.cluster.coverage.Store(&c.coverage)
		if got := a.known(); got.Reason != c.reason || got.Admit != c.admit {
			t.Errorf("%s: %+v", c.name, got)
		}
		s := a.status()
		if s.Protected != (c.elsewhere == "" && c.reason != node.ReasonNotInForce) {
			t.Errorf("%s: protected %t", c.name, s.Protected)
		}
		for _, l := range s.Layers {
			if c.elsewhere != "" && (l.State != layer.Unknown || l.Detail != c.elsewhere) {
				t.Errorf("%s: %+v", c.name, l)
			}
		}
	}
}

// Before the interfaces are listed nothing is known about them: neither log nor metrics claim anything.
func TestInterfacesThatAreNotListed(t *testing.T) {
	a := &agent{cluster: newCluster(), links: &ifwatch.Watch{}}
	a.cluster.coverage.Store(&node.Coverage{})
	if a.reportInterfaces(nil) {
		t.Error("some are pending")
	}
	if known := a.cluster.coverage.Load(); !errors.Is(known.Err, ifwatch.ErrNotListed) {
		t.Errorf("the coverage is %+v", known)
	}
}

// What is installed is recorded at once. A failure is logged once, and retried for as long as it takes.
func TestRemember(t *testing.T) {
	const resync = 10 * time.Second
	pattern := patternOf(t, "eni+")
	dir := filepath.Join(t.TempDir(), "below")
	blocked := func(on bool) { // by a file where the folder has to be
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if on {
			if err := os.WriteFile(dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	remembering(t, dir, pattern, resync, func(record rules.Record, log *lockedLog) {
		said := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if n := strings.Count(log.String(), "recording what was installed failed"); n != want || strings.Count(log.String(), "\n") != want {
				t.Errorf("%s: it was said %d times:\n%s", when, n, log)
			}
		}
		said("at first", 0)
		patterns, err := record.Patterns()
		backend, _ := record.Backend()
		if err != nil || !slices.Equal(patterns, []ifpattern.Pattern{pattern}) || backend != rules.NFT {
			t.Errorf("recorded %v, %q, %v", patterns, backend, err)
		}
		if !errors.Is(record.MarkCleaning(), rules.ErrAgentRuns) {
			t.Error("it is not marked that an agent runs")
		}
		time.Sleep(10*resync + time.Second)
		if n := openIn(t, dir); n != 1 {
			t.Errorf("%d marks that an agent runs", n)
		}
		blocked(true)
		time.Sleep(10 * resync)
		said("blocked", 1)
		blocked(false)
		time.Sleep(resync)
		said("not blocked any more", 1)
		if patterns, err := record.Patterns(); err != nil || len(patterns) != 1 {
			t.Errorf("recorded again: %v, %v", patterns, err)
		}
		blocked(true)
		time.Sleep(10 * resync)
		said("blocked again", 2)
	})
}

// A running cleanup would remove the record, so none is written until it has ended.
func TestRememberBesideACleanup(t *testing.T) {
	dir := t.TempDir()
	record, err := rules.NewRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := record.Remember(nil, rules.Legacy); err != nil { // so that there is something to lock
		t.Fatal(err)
	}
	if err := record.MarkCleaning(); err != nil {
		t.Fatal(err)
	}
	remembering(t, dir, patternOf(t, "eni+"), time.Second, func(record rules.Record, log *lockedLog) {
		time.Sleep(time.Minute)
		synctest.Wait()
		if patterns, err := record.Patterns(); err != nil || patterns != nil || !strings.Contains(log.String(), "a cleanup is running") {
			t.Errorf("recorded %v, %v; the log is\n%s", patterns, err, log)
		}
	})
}

func patternOf(t *testing.T, text string) ifpattern.Pattern {
	t.Helper()
	p, err := ifpattern.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// openIn counts the open files of this process below a directory.
func openIn(t *testing.T, dir string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if to, err := os.Readlink(file); err == nil && strings.HasPrefix(to, dir+"/") {
			n++
		}
	}
	return n
}

// lockedLog can be read while it is written to: the end of a sleep does not order the two.
type lockedLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// remembering runs a scenario with an agent of which only remember is running.
func remembering(t *testing.T, dir string, p ifpattern.Pattern, resync time.Duration, play func(rules.Record, *lockedLog)) {
	t.Helper()
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "iptables-nft"), []byte("#!/bin/false\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	selector, err := rules.NewSelector(rules.NFT, imds.Families, "")
	if err != nil {
		t.Fatal(err)
	}
	record, err := rules.NewRecord(dir)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		var log lockedLog
		a := &agent{
			config: config.Config{Interfaces: []ifpattern.Pattern{p}, Resync: resync}, record: record, selector: selector,
			log: slog.New(slog.NewTextHandler(&log, nil)),
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { a.remember(ctx); close(done) }()
		synctest.Wait()
		play(record, &log)
		cancel()
		<-done
	})
}

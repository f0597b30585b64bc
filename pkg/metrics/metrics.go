// Package metrics exports what the keepers and the watchers found, and answers the kubelet's probes.
//
// The names are a contract with dashboards and alerts; docs/reference/metrics.md explains each. Every label value that is known
// beforehand exists at zero from the start, so that rate() and alerts work from the first scrape on.
package metrics

import (
	"errors"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/probe"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

const prefix = "imds_guard_"

// Watchers, whose losses of notifications are counted.
const (
	WatcherInterfaces = "interfaces"
	WatcherNFTables   = "nftables"
	WatcherLegacy     = "legacy"
	WatcherRoute      = "route"
)

// result returns a value for the label of the same name.
func result(ok bool) string {
	if ok {
		return "success"
	}
	return "error"
}

// Metrics holds every metric in a registry of its own. It may be used from any goroutine, and never blocks.
type Metrics struct {
	Registry *prometheus.Registry
	// Status returns what is known at the moment of a scrape. Set it before the first scrape.
	Status func() guard.Status

	looks      *prometheus.CounterVec
	drift      *prometheus.CounterVec
	repairs    *prometheus.CounterVec
	repairTime *prometheus.HistogramVec
	interfaces *prometheus.GaugeVec
	events     *prometheus.CounterVec
	failures   *prometheus.CounterVec
	lost       *prometheus.CounterVec
	requests   *prometheus.CounterVec
	backend    *prometheus.GaugeVec
	probes     *prometheus.CounterVec
	probed     *prometheus.GaugeVec
}

// Layer is a layer whose series exist from the start, with the states that it can be in.
type Layer struct {
	layer.ID
	States []layer.State
}

// Build describes the program and the mode in which it runs.
type Build struct{ Version, Commit, Mode string }

// New makes the metrics. requests are the operations that Requested is called with.
func New(b Build, layers []Layer, requests []string) *Metrics {
	m := &Metrics{
		Registry: prometheus.NewRegistry(),
		looks:    counterVec("looks_total", "Number of times a layer was looked at, whatever was found.", "layer", "family"),
		drift: counterVec("drift_total", "Number of times the rules were found in a state other than they were left in.",
			"layer", "family", "reason"),
		repairs: counterVec("repairs_total", "Attempts to repair drifted rules.", "layer", "family", "result"),
		repairTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    prefix + "repair_duration_seconds",
			Help:    "Time from noticing a drift to reading the rules back in place.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"layer", "family"}),
		interfaces: gaugeVec("interfaces", "Pod-side interfaces of the node, by what keeps their packets from the endpoint.",
			"coverage"),
		events: counterVec("interface_events_total", "Pod-side interfaces added or removed, and full listings that no event "+
			"triggered.", "type"),
		failures: counterVec("iptables_errors_total", "iptables commands that failed.", "family", "operation", "reason"),
		lost: counterVec("watch_losses_total", "Number of times a watcher may have missed something; each time everything is "+
			"looked at again.", "watcher"),
		requests: counterVec("kubernetes_requests_total", "HTTP requests to the Kubernetes API.", "operation", "result"),
		probes: counterVec("probe_results_total", "Probes: packets and socket calls that the agent makes as a pod would, by result.",
			"path", "family", "result"),
		probed: gaugeVec("probe_last_success_timestamp_seconds", "Unix time at which a probe was last seen stopped; 0 if never.",
			"path", "family"),
		backend: gaugeVec("backend_info", "1 for the iptables backend in use.", "backend", "version"),
	}
	build := gaugeVec("build_info", "1; the labels describe the build.", "version", "commit", "goversion")
	build.WithLabelValues(b.Version, b.Commit, runtime.Version()).Set(1)
	mode := gaugeVec("mode", "1 for the mode that the agent runs in, else 0. In audit mode nothing is blocked.", "mode")
	for _, one := range policy.Modes {
		mode.WithLabelValues(string(one)).Set(bool01(string(one) == b.Mode))
	}

	m.Registry.MustRegister(statusCollector{m, layers}, m.looks, m.drift, m.repairs, m.repairTime, m.interfaces, m.events, m.failures,
		m.lost, m.requests, m.backend, m.probes, m.probed, build, mode,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.zero(layers, requests)
	return m
}

func (m *Metrics) zero(layers []Layer, requests []string) {
	for _, l := range layers {
		m.looks.WithLabelValues(l.Name, string(l.Family))
		for _, s := range l.States {
			if s.Drifted() {
				m.drift.WithLabelValues(l.Name, string(l.Family), s.String())
			}
		}
		m.repairs.WithLabelValues(l.Name, string(l.Family), result(true))
		m.repairs.WithLabelValues(l.Name, string(l.Family), result(false))
		m.repairTime.WithLabelValues(l.Name, string(l.Family))
	}
	for _, f := range imds.Families {
		for _, op := range rules.Operations {
			for _, reason := range rules.Reasons {
				m.failures.WithLabelValues(string(f), string(op), string(reason))
			}
		}
	}
	for _, coverage := range []string{"rule", "route", "none"} {
		m.interfaces.WithLabelValues(coverage)
	}
	for _, event := range []string{"added", "removed", "resync"} {
		m.events.WithLabelValues(event)
	}
	for _, watcher := range []string{WatcherInterfaces, WatcherNFTables, WatcherLegacy, WatcherRoute} {
		m.lost.WithLabelValues(watcher)
	}
	for _, path := range probe.Paths {
		for _, f := range imds.Families {
			m.probed.WithLabelValues(path, string(f))
			for _, result := range probe.Results {
				m.probes.WithLabelValues(path, string(f), result)
			}
		}
	}
	for _, op := range requests {
		m.requests.WithLabelValues(op, result(true))
		m.requests.WithLabelValues(op, result(false))
	}
}

// Looked implements guard.Recorder.
func (m *Metrics) Looked(id layer.ID) { m.looks.WithLabelValues(id.Name, string(id.Family)).Inc() }

// Drift implements guard.Recorder.
func (m *Metrics) Drift(id layer.ID, s layer.State) {
	m.drift.WithLabelValues(id.Name, string(id.Family), s.String()).Inc()
}

// Repaired implements guard.Recorder.
func (m *Metrics) Repaired(id layer.ID, ok bool, took time.Duration) {
	m.repairs.WithLabelValues(id.Name, string(id.Family), result(ok)).Inc()
	if ok {
		m.repairTime.WithLabelValues(id.Name, string(id.Family)).Observe(took.Seconds())
	}
}

// Failed implements guard.Recorder. It counts failed commands; other failures show in the state.
func (m *Metrics) Failed(_ layer.ID, err error) {
	if command, ok := errors.AsType[*rules.CommandError](err); ok {
		m.failures.WithLabelValues(string(command.Family), string(command.Operation), string(command.Reason)).Inc()
	}
}

// Interfaces sets how many pod-side interfaces iptables' rules in force cover, how many others the route layer covers, and how
// many nothing covers.
func (m *Metrics) Interfaces(rule, route, none int) {
	m.interfaces.WithLabelValues("rule").Set(float64(rule))
	m.interfaces.WithLabelValues("route").Set(float64(route))
	m.interfaces.WithLabelValues("none").Set(float64(none))
}

// Added implements ifwatch.Recorder.
func (m *Metrics) Added(n int) { m.events.WithLabelValues("added").Add(float64(n)) }

// Removed implements ifwatch.Recorder.
func (m *Metrics) Removed(n int) { m.events.WithLabelValues("removed").Add(float64(n)) }

// Resynced implements ifwatch.Recorder.
func (m *Metrics) Resynced() { m.events.WithLabelValues("resync").Inc() }

// Lost counts a loss of notifications by a watcher.
func (m *Metrics) Lost(watcher string) { m.lost.WithLabelValues(watcher).Inc() }

// Requested counts a request to the Kubernetes API.
func (m *Metrics) Requested(operation string, ok bool) {
	m.requests.WithLabelValues(operation, result(ok)).Inc()
}

// Probed counts a probe.
func (m *Metrics) Probed(path string, f imds.Family, result string) {
	m.probes.WithLabelValues(path, string(f), result).Inc()
	if result == probe.Stopped {
		m.probed.WithLabelValues(path, string(f)).SetToCurrentTime()
	}
}

// Backend sets which iptables backend is in use.
func (m *Metrics) Backend(name, version string) {
	m.backend.Reset()
	m.backend.WithLabelValues(name, version).Set(1)
}

func gaugeVec(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: prefix + name, Help: help}, labels)
}

func counterVec(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: prefix + name, Help: help}, labels)
}

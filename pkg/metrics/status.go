// The state of the layers, judged at every scrape: a gauge that was set once would stay green while a keeper hangs.

package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/imds-guard/imds-guard/pkg/layer"
)

var (
	protectedDesc = prometheus.NewDesc(prefix+"protected", "1 while every family's packets from pods to the endpoint are "+
		"stopped by at least one layer that was read back from the kernel, else 0.", nil, nil)
	degradedDesc = prometheus.NewDesc(prefix+"degraded", "1 while a layer that was asked for, and that the node can have, is "+
		"not known to be in force, else 0.", nil, nil)
	stateDesc = prometheus.NewDesc(prefix+"rule_state", "1 for the state that the rules are known to be in, else 0.",
		[]string{"layer", "family", "state"}, nil)
	verifiedDesc = prometheus.NewDesc(prefix+"last_verified_timestamp_seconds", "Unix time at which the rules were last "+
		"read back from the kernel as stopping the pods' packets; 0 if never.", []string{"layer", "family"}, nil)
	contendedDesc = prometheus.NewDesc(prefix+"contended", "1 while something keeps undoing the repairs, which then continue at "+
		"a limited rate, else 0.", []string{"layer", "family"}, nil)
	blockedDesc = prometheus.NewDesc(prefix+"blocked_packets_total", "Packets stopped by the layer, by the kernel's counters as "+
		"of the last look.", []string{"layer", "family"}, nil)
)

// statusCollector turns the status into metrics.
type statusCollector struct {
	m      *Metrics
	layers []Layer
}

// Describe implements prometheus.Collector.
func (statusCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{protectedDesc, degradedDesc, stateDesc, verifiedDesc, contendedDesc, blockedDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c statusCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	status := c.m.Status()
	gauge(protectedDesc, bool01(status.Protected))
	gauge(degradedDesc, bool01(status.Degraded))
	for _, l := range status.Layers {
		name, family := l.Name, string(l.Family)
		for _, s := range c.states(l.ID) {
			gauge(stateDesc, bool01(s == l.State), name, family, s.String())
		}
		gauge(verifiedDesc, unixSeconds(l.Verified), name, family)
		gauge(contendedDesc, bool01(l.Contended), name, family)
		ch <- prometheus.MustNewConstMetric(blockedDesc, prometheus.CounterValue, float64(l.Blocked), name, family)
	}
}

func (c statusCollector) states(id layer.ID) []layer.State {
	for _, l := range c.layers {
		if l.ID == id {
			return l.States
		}
	}
	return nil
}

func unixSeconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixNano()) / 1e9
}

func bool01(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

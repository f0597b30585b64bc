// Who asks for the endpoint, read from the ledger at every scrape.

package metrics

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/imds-guard/imds-guard/pkg/attempts"
)

var attemptsDesc = prometheus.NewDesc(prefix+"attempts_total", "Socket calls by pods to the metadata service: blocked, or audited "+
	"(let through, but would have been blocked). The workload `other` is the sum of pods without series of their own.",
	[]string{"namespace", "workload", "pod", "verdict"}, nil)

// Attempts exports a ledger's series from now on.
func (m *Metrics) Attempts(series func() []attempts.Series) {
	m.Registry.MustRegister(attemptsCollector{series})
}

type attemptsCollector struct{ series func() []attempts.Series }

// Describe implements prometheus.Collector.
func (attemptsCollector) Describe(ch chan<- *prometheus.Desc) { ch <- attemptsDesc }

// Collect implements prometheus.Collector. A pod has a series for each verdict that it has had; the sum of all others always
// has both.
func (c attemptsCollector) Collect(ch chan<- prometheus.Metric) {
	for _, s := range c.series() {
		for verdict, n := range map[string]uint64{"blocked": s.Blocked, "audited": s.Audited} {
			if n > 0 || s.Namespace == attempts.Other && s.Pod == attempts.Other {
				ch <- prometheus.MustNewConstMetric(attemptsDesc, prometheus.CounterValue, float64(n), s.Namespace, s.Workload, s.Pod, verdict)
			}
		}
	}
}

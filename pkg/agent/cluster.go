// What the cluster is told. Nothing here runs before the rules are in place, or the wait for them is over.

package agent

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// UsesAPI reports whether a configuration asks for the Kubernetes API in this environment.
func UsesAPI(c config.Config) bool {
	return c.Kubernetes == config.On || c.Kubernetes == config.Auto && (c.Kubeconfig != "" || node.InCluster())
}

// cluster holds what there is to report and the parts that report it. reporter and events are nil if the API is not used.
type cluster struct {
	coverage atomic.Pointer[node.Coverage]
	reporter *node.Reporter

	mu        sync.Mutex
	events    *node.Events
	drift     map[layer.ID]layer.State // the last one, if it is not repaired yet
	contended map[layer.ID]bool
}

func newCluster() *cluster {
	c := &cluster{drift: map[layer.ID]layer.State{}, contended: map[layer.ID]bool{}}
	c.coverage.Store(&node.Coverage{Err: ifwatch.ErrNotListed})
	return c
}

// connect makes the parts that talk to the API server, without making a request. If it fails, the agent runs without them.
func (a *agent) connect(ctx context.Context, b Build) {
	c := a.config
	if !UsesAPI(c) {
		return
	}
	const without = "the Kubernetes API can't be used; continuing without it, the rules are not affected"
	if c.NodeName == "" {
		a.log.Warn(without, "error", "--node-name: it is not set; set NODE_NAME to the pod's spec.nodeName")
		return
	}
	klog.SetSlogLogger(slog.New(debug{a.log.Handler()}))
	rest, err := node.LoadConfig(c.Kubeconfig)
	if err != nil {
		a.log.Warn(without, "error", err)
		return
	}
	api, err := node.API(rest, b.Version, a.metrics.Requested)
	if err != nil {
		a.log.Warn(without, "error", err)
		return
	}
	client, events := node.Connect(ctx, api, c.NodeName)
	if c.HostNetwork != policy.Allow || a.asking != nil {
		a.pods = pods.New(api, c.NodeName, a.podsChanged)
	}
	a.cluster.reporter = node.New(client, a.known, a.log)
	a.cluster.mu.Lock()
	defer a.cluster.mu.Unlock()
	a.cluster.events = events
}

// recorder returns the event recorder, nil if there is none.
func (c *cluster) recorder() *node.Events {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events
}

// known returns what the reporter may say about the node now.
func (a *agent) known() node.Knowledge {
	s := a.status()
	return node.Knowledge{Condition: node.Judge(s, *a.cluster.coverage.Load()), Admit: admits(s) && !a.prober.pending()}
}

// looked passes on to the cluster what is known after a look.
func (c *cluster) looked(s guard.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range s.Layers {
		if l.Contended && !c.contended[l.ID] && c.events != nil {
			c.events.Contended(l.ID)
		}
		c.contended[l.ID] = l.Contended
	}
	if c.reporter != nil {
		c.reporter.Wake()
	}
}

// recorder counts what happens in the keepers, and passes repairs on to the cluster and to other parts that need to know.
type recorder struct {
	*metrics.Metrics
	*cluster
	repaired func(layer.ID)
}

// Drift implements guard.Recorder.
func (r recorder) Drift(id layer.ID, s layer.State) {
	r.Metrics.Drift(id, s)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.drift[id] = s
}

// Repaired implements guard.Recorder. The cluster is told once of a fight, and not of each repair in it.
func (r recorder) Repaired(id layer.ID, ok bool, took time.Duration) {
	r.Metrics.Repaired(id, ok, took)
	r.repaired(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	drift, drifted := r.drift[id] // without a drift, this was an install that failed at first
	if !ok || !drifted {
		return
	}
	delete(r.drift, id)
	if r.events != nil && !r.contended[id] {
		r.events.Repaired(id, drift)
	}
}

// debug passes everything on at debug level: what the Kubernetes libraries log about a request, the agent logs itself.
type debug struct{ slog.Handler }

// Enabled implements slog.Handler. The libraries' verbose levels, which contain request bodies, are left out.
func (d debug) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo && d.Handler.Enabled(ctx, slog.LevelDebug)
}

// Handle implements slog.Handler.
func (d debug) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return d.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (d debug) WithAttrs(attrs []slog.Attr) slog.Handler { return debug{d.Handler.WithAttrs(attrs)} }

// WithGroup implements slog.Handler.
func (d debug) WithGroup(name string) slog.Handler { return debug{d.Handler.WithGroup(name)} }

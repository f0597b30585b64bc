// What the cluster is told. Nothing here runs before the rules are in, or a layer hangs.

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

// UsesAPI reports whether a configuration asks for the Kubernetes API, here and now.
func UsesAPI(c config.Config) bool {
	return c.Kubernetes == config.On || c.Kubernetes == config.Auto && (c.Kubeconfig != "" || node.InCluster())
}

// cluster is what there is to say, and who says it. reporter and events are nil if the API is not used.
type cluster struct {
	coverage atomic.Pointer[node.Coverage]
	reporter *node.Reporter

	mu        sync.Mutex
	events    *node.Events
	drift     map[layer.ID]layer.State // the last that is not repaired yet
	contended map[layer.ID]bool
}

func newCluster() *cluster {
	c := &cluster{drift: map[layer.ID]layer.State{}, contended: map[layer.ID]bool{}}
	c.coverage.Store(&node.Coverage{Err: ifwatch.ErrNotListed})
	return c
}

// connect makes the parts that speak to the API server, without a request. What fails here leaves the agent without them.
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

// recorder is who is told of events, nil if nobody is.
func (c *cluster) recorder() *node.Events {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.events
}

// known is what the reporter may say of the node now.
func (a *agent) known() node.Knowledge {
	s := a.status()
	return node.Knowledge{Condition: node.Judge(s, *a.cluster.coverage.Load()), Admit: admits(s) && !a.prober.pending()}
}

// looked tells the cluster what there is to know after a look.
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

// recorder counts what happens in the keepers, and tells the cluster, and who else has to know, of repairs.
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

// Repaired implements guard.Recorder. Of a fight the cluster hears once, not of each repair in it.
func (r recorder) Repaired(id layer.ID, ok bool, took time.Duration) {
	r.Metrics.Repaired(id, ok, took)
	r.repaired(id)
	r.mu.Lock()
	defer r.mu.Unlock()
	drift, drifted := r.drift[id] // else it is an install that failed at first
	if !ok || !drifted {
		return
	}
	delete(r.drift, id)
	if r.events != nil && !r.contended[id] {
		r.events.Repaired(id, drift)
	}
}

// debug passes everything on at the level debug: what the Kubernetes libraries log of a request, the agent says itself.
type debug struct{ slog.Handler }

// Enabled implements slog.Handler. What the libraries call verbose has the bodies of requests in it.
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

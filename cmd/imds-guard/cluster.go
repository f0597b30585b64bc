// What the cluster is told. Nothing here runs before the rules are in.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/klog/v2"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/node"
)

// checkFiles finds what is wrong with the files and the surroundings that the settings speak of, and that only the agent
// needs.
func checkFiles(c config.Config) error {
	var errs []error
	if err := web.Validate(c.WebConfigFile); err != nil {
		words := strings.Join(strings.Fields(err.Error()), " ") // the YAML library writes lines
		errs = append(errs, fmt.Errorf("--web-config-file: reading %s: %s", c.WebConfigFile, words))
	}
	if !usesAPI(c) {
		return errors.Join(errs...)
	}
	if _, err := node.LoadConfig(c.Kubeconfig); err != nil && c.Kubeconfig != "" {
		errs = append(errs, fmt.Errorf("--kubeconfig: reading %s: %w", c.Kubeconfig, err))
	} else if err != nil && c.Kubernetes == config.On {
		errs = append(errs, fmt.Errorf("--kubernetes: on needs a pod with a token, or --kubeconfig; else use off: %w", err))
	}
	if c.NodeName == "" && c.Kubernetes == config.On {
		errs = append(errs, errors.New("--node-name: on needs it; give it, or set NODE_NAME to the pod's spec.nodeName"))
	}
	for _, problem := range validation.IsDNS1123Subdomain(c.NodeName) {
		if c.NodeName != "" {
			errs = append(errs, fmt.Errorf("--node-name: %q (or NODE_NAME) is no name of a node: %s", c.NodeName, problem))
		}
	}
	return errors.Join(errs...)
}

func usesAPI(c config.Config) bool {
	return c.Kubernetes == config.On || c.Kubernetes == config.Auto && (c.Kubeconfig != "" || node.InCluster())
}

// cluster is what there is to say, and who says it. reporter and events are nil if the API is not used; they are set before
// the loop runs beside anything else.
type cluster struct {
	reporter *node.Reporter
	events   *node.Events
	coverage atomic.Pointer[node.Coverage]

	// For the loop's goroutine alone.
	drift     map[enforce.Family]enforce.State // the last that is not repaired yet
	contended map[enforce.Family]bool
}

func newCluster() *cluster {
	return &cluster{drift: map[enforce.Family]enforce.State{}, contended: map[enforce.Family]bool{}}
}

// connect makes the parts that speak to the API server, without a request. What fails here leaves the agent without them.
func (a *agent) connect(ctx context.Context) {
	c := a.config
	if !usesAPI(c) {
		return
	}
	const without = "the Kubernetes API can't be used; going on without it, the rules are not affected"
	if c.NodeName == "" {
		a.log.Warn(without, "error", "--node-name: nobody gave it; set NODE_NAME to the pod's spec.nodeName")
		return
	}
	klog.SetSlogLogger(slog.New(debug{a.log.Handler()}))
	rest, err := node.LoadConfig(c.Kubeconfig)
	if err != nil {
		a.log.Warn(without, "error", err)
		return
	}
	client, events, err := node.Connect(ctx, rest, c.NodeName, version, a.metrics.Requested)
	if err != nil {
		a.log.Warn(without, "error", err)
		return
	}
	a.cluster.events = events
	a.coverage.Told = events.NotCovered
	a.cluster.reporter = node.New(client, a.known, a.log)
}

// known is what the reporter may say of the node now.
func (a *agent) known() node.Knowledge {
	s := a.guard.Status()
	return node.Knowledge{Condition: node.Judge(s, *a.cluster.coverage.Load()), Protected: s.Protected}
}

// looked takes what a look found.
func (c *cluster) looked(s guard.Status, coverage node.Coverage) {
	c.coverage.Store(&coverage)
	if c.reporter == nil {
		return
	}
	for _, l := range s.Layers {
		if l.Contended && !c.contended[l.Family] {
			c.events.Contended(l.Family)
		}
		c.contended[l.Family] = l.Contended
	}
	c.reporter.Wake()
}

// recorder counts what happens in the loop, and tells the cluster of repairs.
type recorder struct {
	*metrics.Metrics
	*cluster
}

// Drift implements guard.Recorder.
func (r recorder) Drift(f enforce.Family, s enforce.State) {
	r.Metrics.Drift(f, s)
	r.drift[f] = s
}

// Repaired implements guard.Recorder. Of a fight the cluster hears once, not of each repair in it.
func (r recorder) Repaired(f enforce.Family, ok bool, took time.Duration) {
	r.Metrics.Repaired(f, ok, took)
	drift, drifted := r.drift[f] // else it is an install that failed at first
	if !ok || !drifted {
		return
	}
	delete(r.drift, f)
	if r.events != nil && !r.contended[f] {
		r.events.Repaired(f, drift)
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

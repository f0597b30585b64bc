// imds-guard run: the agent.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func newRun() *cobra.Command {
	options := config.NewOptions()
	cmd := &cobra.Command{
		Use:   "run",
		Short: "The agent: enforce, watch, export; stops on SIGTERM, and the rules stay",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := options.Load()
			if err != nil {
				return err
			}
			if err := checkFiles(c); err != nil {
				return err
			}
			if err := requireNetAdmin("changing rules"); err != nil {
				return err
			}
			return runAgent(cmd.Context(), c, newLogger(c))
		},
	}
	options.AddTo(cmd.Flags())
	return cmd
}

func newLogger(c config.Config) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

// patternTexts is the configured patterns for the log.
func patternTexts(c config.Config) string {
	texts := make([]string, len(c.Interfaces))
	for i, p := range c.Interfaces {
		texts[i] = p.String()
	}
	return strings.Join(texts, ",")
}

// newLayers makes what the configuration asks for, without touching the node.
func newLayers(c config.Config, s *rules.Selector) (layers []guard.Layer) {
	for _, f := range enforce.Families {
		layers = append(layers, rules.NewTable(f, rules.Desired(f, c.Interfaces, c.Verdict), s))
	}
	return layers
}

// runAgent enforces first, and starts all else only then.
func runAgent(ctx context.Context, c config.Config, log *slog.Logger) error {
	selector, err := rules.NewSelector(c.Backend, enforce.Families)
	if err != nil {
		return failed(err)
	}
	m := metrics.New(version, commit, enforce.Families, node.Operations)
	a := &agent{
		config: c, log: log, selector: selector, metrics: m,
		coverage: ifwatch.Reporter{Log: log},
		nft:      &netfilter.NFTWatch{},
		cluster:  newCluster(),
	}
	m.Status = func() guard.Status { return a.guard.Status() }
	a.guard = guard.New(guard.Config{
		Layers: newLayers(c, selector), Resync: c.Resync, Recorder: recorder{m, a.cluster}, Log: log,
		First: a.noteWriter, Before: a.chooseBackend, After: a.report, Suspect: a.suspect,
	})
	a.links = &ifwatch.Watch{Resync: c.Resync, Recorder: m, Wake: a.guard.Wake, Lost: a.lost(metrics.WatcherInterfaces)}
	a.nft.Wake, a.nft.Lost = a.guard.Wake, a.lost(metrics.WatcherNFTables)
	a.legacy = netfilter.NewLegacyPoll(a.guard.Wake, a.lost(metrics.WatcherLegacy), enforce.Families...)
	a.started = time.Now()

	a.guard.Enforce()

	log.Info("started", "version", version, "backend", selector.Current(), "interfaces", patternTexts(c),
		"verdict", c.Verdict, "protected", a.guard.Status().Protected)
	a.connect(ctx)
	a.run(ctx)
	log.Info("stopped; the rules stay, only `imds-guard cleanup` removes them")
	return nil
}

// agent ties the parts together. Its methods but run and the probes are called on the loop's goroutine.
type agent struct {
	config   config.Config
	log      *slog.Logger
	selector *rules.Selector
	metrics  *metrics.Metrics
	guard    *guard.Guard
	links    *ifwatch.Watch
	nft      *netfilter.NFTWatch
	legacy   *netfilter.LegacyPoll
	coverage ifwatch.Reporter
	cluster  *cluster
	backend  string           // as exported last
	writer   netfilter.Writer // who wrote to nftables last before the current look
	started  time.Time
}

// run returns when ctx has ended and everything has stopped.
func (a *agent) run(ctx context.Context) {
	server := &metrics.Server{
		Address: a.config.MetricsAddress, HealthAddress: a.config.HealthAddress, WebConfigFile: a.config.WebConfigFile,
		Metrics: a.metrics, Healthy: a.healthy, Ready: a.ready, Log: a.log,
	}
	parts := []func(context.Context){a.guard.Run, a.links.Run, a.nft.Run, a.legacy.Run, a.remember, server.Run}
	if a.cluster.reporter != nil {
		parts = append(parts, a.cluster.reporter.Run)
	}
	var wg sync.WaitGroup
	for _, part := range parts {
		wg.Go(func() { part(ctx) })
	}
	wg.Wait()
}

// remember records for cleanup that an agent runs, and what was installed. It is a part of its own, so that no file system
// can hold up the loop.
func (a *agent) remember(ctx context.Context) {
	reported, marked := false, false
	for {
		var err error
		if !marked {
			err = rules.MarkRunning(rules.RecordDir)
			marked = err == nil
		}
		if err == nil {
			err = rules.Remember(rules.RecordDir, a.config.Interfaces)
		}
		if err == nil {
			return
		}
		if !reported {
			a.log.Warn("recording what was installed failed; trying again, until then cleanup needs the same --interface flags",
				"error", err)
			reported = true
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(a.config.Resync):
		}
	}
}

// noteWriter notes who wrote to nftables last, before the loop does.
func (a *agent) noteWriter() { a.writer = a.nft.LastWriter() }

func (a *agent) chooseBackend() {
	before := a.selector.Current()
	if a.selector.Refresh() {
		a.log.Warn("the node's agents use another iptables backend now; following them",
			"from", before, "to", a.selector.Current())
	}
}

// report exports what a look found, beside what the guard itself records.
func (a *agent) report(s guard.Status) {
	name, version := string(a.selector.Current()), a.selector.Version()
	if exported := name + version; exported != a.backend {
		a.metrics.Backend(name, version)
		a.backend = exported
		a.legacy.Set(a.selector.Current() == rules.Legacy)
	}
	picture := a.links.Picture()
	if errors.Is(picture.Err, ifwatch.ErrNotListed) {
		a.cluster.looked(s, node.Coverage{Err: picture.Err})
		return
	}
	uncovered := ifwatch.Uncovered(picture.Interfaces, a.config.Interfaces)
	settled, settling := a.coverage.Report(time.Now(), uncovered)
	if settling {
		time.AfterFunc(ifwatch.SettleTime, a.guard.Wake)
	}
	known := node.Coverage{Err: picture.Err, Uncovered: settled}
	if settling && picture.Err == nil && len(settled) == 0 {
		known = *a.cluster.coverage.Load() // what was known before holds until this one has settled
	}
	a.cluster.looked(s, known)
	covered := len(picture.Interfaces) - len(uncovered)
	if !s.Protected {
		covered = 0 // a pattern that no rule in force has covers nothing
	}
	a.metrics.Interfaces(covered, len(picture.Interfaces)-covered)
}

// suspect names who wrote to nftables last before the look, and so most likely made the rules drift.
func (a *agent) suspect() string {
	if a.writer.PID == 0 || a.selector.Current() != rules.NFT {
		return "unknown"
	}
	return fmt.Sprintf("%s (pid %d)", a.writer.Name, a.writer.PID)
}

func (a *agent) lost(watcher string) func(error) {
	return func(err error) {
		a.metrics.Lost(watcher)
		a.log.Warn("a watcher may have missed something; looking at everything again", "watcher", watcher, "error", err)
		a.guard.Wake()
	}
}

// stuckAfter, beyond three resync periods, leaves time for a look in which every command hangs until it is killed: two
// families, each read, repaired and read back.
const stuckAfter = time.Minute

// healthy says why the loop is stuck, or nil.
func (a *agent) healthy() error {
	last := a.guard.Status().At
	if last.IsZero() {
		last = a.started
	}
	if age := time.Since(last); age > 3*a.config.Resync+stuckAfter {
		return fmt.Errorf("the loop is stuck: the last look at the rules ended %s ago", age.Round(time.Second))
	}
	return nil
}

// ready says why the node is not known to be protected, or nil.
func (a *agent) ready() error {
	s := a.guard.Status()
	if s.Protected {
		return nil
	}
	var reasons []string
	for _, l := range s.Layers {
		reasons = append(reasons, l.String())
	}
	return fmt.Errorf("not protected: %s", strings.Join(reasons, "; "))
}

// The agent's life: its start, its parts, and its end.

package agent

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/datapath"
	"github.com/imds-guard/imds-guard/pkg/guard"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/metrics"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// Build identifies the program in metrics and in requests.
type Build struct{ Version, Commit string }

// patience is how long the rest of the start waits for every layer to be enforced for the first time: a layer that hangs must
// not keep changes in the others from being noticed.
const patience = 2 * time.Second

// agent ties the parts together.
type agent struct {
	config    config.Config
	log       *slog.Logger
	elsewhere string // why this is not the node's network namespace; empty if it is
	record    rules.Record
	metrics   *metrics.Metrics
	guard     *guard.Guard
	links     *ifwatch.Watch
	datapath  *datapath.Watch
	prober    prober
	hosts     *hosts
	asking    *asking     // nil without attribution
	leftovers *leftovers  // nil unless in audit mode
	pods      *pods.Watch // nil if no list of pods is needed, or without the API
	version   string
	observer  *observer
	cluster   *cluster
	started   time.Time

	// What the iptables layer has beside its keepers. selector is nil if the layer was not asked for, or is not available.
	selector *rules.Selector
	nft      *netfilter.NFTWatch
	legacy   *netfilter.LegacyPoll
}

// Run enforces first, starts everything else only then, and returns when ctx has ended. What is in force stays. The error says
// why nothing could be enforced at all.
func Run(ctx context.Context, c config.Config, b Build, log *slog.Logger) error {
	a, err := newAgent(c, b, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	if a.elsewhere == "" {
		wg.Go(func() { a.guard.Run(ctx) })
		a.guard.First(patience)
		wg.Go(func() { a.datapath.Run(ctx) })
		a.datapath.First(patience)
	} else {
		log.Error("nothing is guarded: the agent is not in the node's network namespace", "detail", a.elsewhere)
	}
	log.Info("started", "version", b.Version, "layers", c.Layers, "backend", a.backend(), "policy", c.Policy().String(),
		"protected", a.guard.Status().Protected)
	a.connect(ctx, b)
	for _, part := range a.parts() {
		wg.Go(func() { part(ctx) })
	}
	wg.Wait()
	log.Info("stopped; the rules stay in place, only `imds-guard cleanup` removes them")
	return nil
}

func newAgent(c config.Config, b Build, log *slog.Logger) (*agent, error) {
	record, err := rules.NewRecord(rules.RecordDir)
	if err != nil {
		return nil, err
	}
	recorded, err := record.Backend()
	if err != nil {
		log.Warn("can't tell which backend was used last; choosing one again", "error", err)
	}
	layers, selector, err := newLayers(c, recorded)
	if err != nil {
		return nil, err
	}
	a := &agent{
		config: c, log: log, record: record, selector: selector, started: time.Now(), version: b.Version,
		elsewhere: OutsideNode(),
		metrics:   metrics.New(metrics.Build{Version: b.Version, Commit: b.Commit, Mode: string(c.Mode)}, described(layers), node.Operations),
		nft:       &netfilter.NFTWatch{},
		observer:  newObserver(),
		cluster:   newCluster(),
	}
	a.metrics.Status = a.status
	a.guard = guard.New(guard.Config{
		Layers: layers, Policy: c.Policy(), Resync: c.Resync, Log: log,
		Recorder: recorder{a.metrics, a.cluster, a.repaired}, Looked: a.observer.Wake, Suspect: a.suspect, Evidence: a.evidence,
	})
	if c.Mode == policy.AuditOnly {
		c.ProbeInterval = 0 // nothing would stop a probe
		a.leftovers = newLeftovers(c, recorded)
	}
	own := newOwnPackets()
	a.prober = prober{
		makeAll: probes{c.Interfaces, a.freshLooks, own}.all, own: own, interval: c.ProbeInterval, log: log, ended: a.probed,
	}
	a.hosts = &hosts{
		mode: c.HostNetwork, namespaces: c.HostNamespaces, resync: c.Resync, log: log, place: a.podsPlace, list: a.listPods,
		waker: newWaker(),
	}
	if c.Attribution && slices.Contains(c.Layers, cgroup.LayerName) {
		a.asking = newAsking(record.Attempts(), log)
		a.asking.auditOnly, a.asking.resync, a.asking.list = c.Mode == policy.AuditOnly, c.Resync, a.knownPods
		a.asking.owners, a.asking.events = newOwners(a.podsPlace), a.cluster.recorder
		a.asking.loaded = func() { a.metrics.Attempts(a.asking.ledger.Series) }
	}
	a.datapath = datapath.NewWatch(c.Resync, a.bypassesChanged)
	a.links = &ifwatch.Watch{Resync: c.Resync, Recorder: a.metrics, Wake: a.linksChanged, Lost: a.lost(metrics.WatcherInterfaces)}
	if selector != nil {
		selector.Changed = a.backendChanged
	}
	a.nft.Wake, a.nft.Lost = a.wakeLayer(rules.LayerName), a.lost(metrics.WatcherNFTables)
	a.legacy = netfilter.NewLegacyPoll(a.nft.Wake, a.lost(metrics.WatcherLegacy), imds.Families...)
	return a, nil
}

// parts returns what runs beside the keepers.
func (a *agent) parts() []func(context.Context) {
	server := &metrics.Server{
		Address: a.config.MetricsAddress, HealthAddress: a.config.HealthAddress, WebConfigFile: a.config.WebConfigFile,
		Metrics: a.metrics, Healthy: a.healthy, Ready: a.ready, Log: a.log,
	}
	parts := []func(context.Context){server.Run}
	if a.cluster.reporter != nil {
		parts = append(parts, a.cluster.reporter.Run)
	}
	if a.elsewhere == "" {
		parts = append(parts, a.observe, a.links.Run, a.remember, a.prober.run, answers{a.record.Socket(), a.report, a.log}.run)
		if a.leftovers != nil {
			parts = append(parts, a.letGo)
		}
		if a.asking != nil {
			parts = append(parts, a.asking.run)
		}
		if slices.Contains(a.config.Layers, cgroup.LayerName) {
			parts = append(parts, a.hosts.run)
		}
		if a.pods != nil {
			parts = append(parts, a.pods.Run)
		}
		if a.selector != nil {
			parts = append(parts, a.nft.Run, a.legacy.Run)
		}
		if slices.Contains(a.config.Layers, route.LayerName) && a.config.Mode == policy.Enforce {
			w := route.Watch{Wake: a.wakeLayer(route.LayerName), Lost: a.lost(metrics.WatcherRoute)}
			parts = append(parts, w.Run)
		}
	}
	return parts
}

// status returns what is known of the layers: nothing, if this is not the node's network namespace.
func (a *agent) status() guard.Status {
	s := a.guard.Status()
	for i, l := range s.Layers {
		s.Layers[i].Blocked = a.prober.own.others(l.ID, l.Blocked)
	}
	if a.elsewhere != "" {
		for i := range s.Layers {
			s.Layers[i].Reading = layer.Reading{State: layer.Unknown, Detail: a.elsewhere}
		}
		s = guard.Judge(s.Layers, guard.Evidence{Auditing: s.Auditing})
	}
	return s
}

// evidence returns what is known in addition to the layers' readings.
func (a *agent) evidence() guard.Evidence {
	e, found := a.prober.evidence(), a.datapath.Found()
	e.Bypasses, e.Unsearched, e.Unlisted = found.Ways, found.Err, a.hosts.unlisted()
	if a.leftovers != nil {
		e.Auditing, e.Blocking = true, a.leftovers.found()
	}
	return e
}

// podsPlace returns the directory below which pods' cgroups are, as found by the layer that needs it.
func (a *agent) podsPlace() string {
	for _, l := range a.guard.Status().Layers {
		if l.Name == cgroup.LayerName && l.Place != "" {
			return l.Place
		}
	}
	return ""
}

// listPods lists the node's pods. Without the API the list is known to be empty: no pod can be told from another.
func (a *agent) listPods() (all []pods.Pod, known bool) {
	if a.pods != nil {
		return a.pods.List()
	}
	return nil, !UsesAPI(a.config)
}

// podsChanged wakes whatever depends on the node's pods.
func (a *agent) podsChanged() {
	a.hosts.Wake()
	if a.asking != nil && a.asking.ledger.Nameless() {
		a.asking.Wake()
	}
}

// knownPods lists the node's pods and those that ended recently.
func (a *agent) knownPods() (all []pods.Pod, known bool) {
	if a.pods != nil {
		return a.pods.Known()
	}
	return nil, !UsesAPI(a.config)
}

// repaired has the list of hostNetwork pods written again: the layer may have recreated it empty.
func (a *agent) repaired(id layer.ID) {
	if id.Name == cgroup.LayerName {
		a.hosts.Wake()
		a.wakeLayer(cgroup.LayerName)() // both families' programs count in the same maps
	}
}

// probed counts the probes that have ended.
func (a *agent) probed(results []Probe) {
	for _, r := range results {
		a.metrics.Probed(r.Path, r.Family, r.Result)
	}
	a.observer.Wake()
}

// linksChanged asks for a look at everything that pods' interfaces affect.
func (a *agent) linksChanged() {
	a.wake()
	a.datapath.Wake()
}

func (a *agent) bypassesChanged(before, now datapath.Found) {
	switch {
	case now.Err != nil:
		a.log.Warn("it is not known whether pods' packets bypass FORWARD", "error", now.Err)
	case len(now.Ways) > 0:
		a.log.Warn("pods' packets bypass FORWARD; there, only the cgroup layer keeps them from the endpoint, and raw frames (AF_PACKET) are not stopped",
			"ways", now.Ways)
	case before.Err != datapath.ErrNotSearched:
		a.log.Info("found no way for pods' packets to bypass FORWARD")
	}
	a.observer.Wake()
}

// wake asks for a look at everything.
func (a *agent) wake() {
	a.guard.Wake()
	a.observer.Wake()
}

// wakeLayer asks for a look at one layer.
func (a *agent) wakeLayer(name string) func(changed ...imds.Family) {
	return func(changed ...imds.Family) { a.guard.Wake(ids(name, changed...)...) }
}

func (a *agent) lost(watcher string) func(error) {
	return func(err error) {
		a.metrics.Lost(watcher)
		a.log.Warn("a watcher may have missed a change; checking everything again", "watcher", watcher, "error", err)
		a.wake()
	}
}

func (a *agent) backendChanged(from, to rules.Backend) {
	a.log.Warn("the node's other agents now use a different iptables backend; following them", "from", from, "to", to)
	a.wakeLayer(rules.LayerName)() // the hint was in one family's tables
}

// backend returns the iptables backend in use, empty if there is none.
func (a *agent) backend() rules.Backend {
	if a.selector == nil {
		return ""
	}
	return a.selector.Current()
}

// suspect names the process that last wrote to nftables before a look, and so most likely caused the drift.
func (a *agent) suspect(id layer.ID) string {
	writer := a.nft.LastWriter()
	if id.Name != rules.LayerName || writer.PID == 0 || a.backend() != rules.NFT {
		return "unknown"
	}
	return fmt.Sprintf("%s (pid %d)", writer.Name, writer.PID)
}

// Who asks for the endpoint: counting them, naming them, and reporting them in the log and in events.

package agent

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/imds-guard/imds-guard/pkg/attempts"
	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/report"
	"github.com/imds-guard/imds-guard/pkg/request"
	"github.com/imds-guard/imds-guard/pkg/subscription"
)

const (
	// askingPause is how long to collect attempts before reading the counters, unless askingRest times the duration of the last
	// reading is longer. askingPeriod is how often to read them while somebody asks.
	askingPause  = 50 * time.Millisecond
	askingRest   = 20
	askingPeriod = time.Second
	// askingSaved is the shortest time between two writes of the ledger.
	askingSaved = 5 * time.Second
	// askingSeen is how long an event waits in audit mode, so that it can say what was asked for.
	askingSeen = 2 * time.Second
)

// Log lines and events about single pods are sent at once up to askingBurst, then at this rate per second: a Job may create
// thousands of pods.
const (
	askingRate  = 2
	askingBurst = 100
)

// asking keeps the ledger of attempts. Wake may be called from any goroutine.
type asking struct {
	auditOnly bool
	resync    time.Duration
	log       *slog.Logger
	file      string
	ledger    *attempts.Ledger
	owners    *owners
	// loaded is called when the ledger contains what an earlier agent saved: until then it shows too little.
	loaded func()
	// list returns the node's pods, including recently ended ones; events returns the recorder to use, nil if there is none.
	list   func() (all []pods.Pod, known bool)
	events func() *node.Events
	waker
	lines *rate.Limiter
	told  *rate.Limiter
}

func newAsking(file string, log *slog.Logger) *asking {
	return &asking{
		log: log, file: file, ledger: attempts.New(time.Now()), waker: newWaker(),
		lines: rate.NewLimiter(askingRate, askingBurst), told: rate.NewLimiter(askingRate, askingBurst),
	}
}

// follow receives attempts as they are made: a cgroup's pod has to be looked up while the cgroup exists.
func (a *asking) follow(ctx context.Context) {
	subscription.Keep(ctx, func(ctx context.Context) error {
		return cgroup.FollowAttempts(ctx, func(one cgroup.Attempt) {
			a.ledger.Attempted(one, a.owners.of, time.Now())
			a.Wake()
		})
	}, a.lost)
}

// look reads the beginnings of requests, in audit mode.
func (a *asking) look(ctx context.Context) {
	subscription.Keep(ctx, func(ctx context.Context) error {
		return cgroup.FollowRequests(ctx, func(by cgroup.Asker, beginning []byte) {
			if r, ok := request.Parse(beginning); ok {
				a.ledger.Requested(by, r, a.owners.of, time.Now())
			}
		})
	}, a.lost)
}

// lost stays quiet until the layer is in force for the first time: its state says so already.
func (a *asking) lost(err error) {
	if !errors.Is(err, cgroup.ErrNoMaps) {
		a.log.Warn("can't follow pods' attempts; trying again", "error", err)
	}
	a.Wake()
}

// run keeps the ledger until ctx ends. It starts with what an earlier agent saved.
func (a *asking) run(ctx context.Context) {
	if err := a.ledger.Load(a.file, time.Now()); err != nil {
		a.log.Warn("can't read the earlier counts of attempts; starting from zero", "error", err)
	}
	a.loaded()
	var followers sync.WaitGroup
	defer followers.Wait()
	followers.Go(func() { a.follow(ctx) })
	if a.auditOnly {
		followers.Go(func() { a.look(ctx) })
	}
	var saved, active time.Time
	var logged said
	for {
		now := time.Now()
		err := a.keep(now)
		if now.Sub(saved) >= askingSaved {
			err, saved = errors.Join(err, a.ledger.Save(a.file)), now
		}
		if logged.isNew(err) {
			a.log.Warn("can't read or save the counts of attempts; trying again", "error", err)
		}
		again, pause := a.resync, max(askingPause, askingRest*time.Since(now))
		if a.ledger.Waiting() || now.Sub(active) < 2*askingPeriod {
			again = min(again, askingPeriod)
		}
		select {
		case <-ctx.Done():
			_ = a.keep(time.Now())
			if err := a.ledger.Save(a.file); err != nil {
				a.log.Warn("could not save the counts of attempts for the next agent", "error", err)
			}
			return
		case <-a.waker:
			active = time.Now()
			select { // wait for others that arrive at the same time
			case <-ctx.Done():
			case <-time.After(pause):
			}
		case <-time.After(again):
		}
	}
}

func (a *asking) keep(now time.Time) error {
	counts, whole, err := cgroup.Counts()
	switch {
	case err == nil:
		a.ledger.Counted(counts, whole, a.owners.of)
	case errors.Is(err, cgroup.ErrNoMaps):
		err = nil
	}
	if all, known := a.list(); known {
		a.ledger.Named(all, now)
		for _, e := range a.ledger.Expire(now) {
			if a.lines.Allow() {
				a.line(e.Known, "a pod that asked for the metadata service is gone", "uid", e.UID, "blocked", e.Calls.Blocked, "audited", e.Calls.Audited)
			}
		}
	}
	wait := time.Duration(0)
	if a.auditOnly {
		wait = askingSeen
	}
	for _, n := range a.ledger.News(now, wait, a.lines.Allow, a.told.Allow) {
		a.tell(n)
	}
	return err
}

// tell reports a pod that asks, in the log and as an event.
func (a *asking) tell(n attempts.News) {
	if n.Log {
		message := "a pod asked for the metadata service and was refused"
		if n.Verdict == cgroup.Audited {
			message = "a pod asked for the metadata service and would have been refused"
		}
		a.line(n.Known, message, "uid", n.UID, "commands", n.Commands)
	}
	if events := a.events(); n.Event && events != nil {
		w := report.Workload{HostNetwork: n.Known.HostNetwork, Requests: n.Requests, Audited: n.Calls.Audited} // what the advice depends on
		events.Asked(node.Pod{Namespace: n.Known.Namespace, Name: n.Known.Name, UID: n.Known.Object}, n.Verdict == cgroup.Audited, w.Advice())
	}
}

func (a *asking) line(p pods.Pod, message string, more ...any) {
	a.log.Info(message, append([]any{"namespace", p.Namespace, "workload", p.Workload.Name, "pod", p.Name, "hostNetwork", p.HostNetwork}, more...)...)
}

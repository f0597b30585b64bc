// What the ledger shows: series, rows of the report, and what is news.

package attempts

import (
	"maps"
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/report"
)

// Other is the namespace, the workload and the pod of the series of all others, and Unknown the first two of a pod that has no name, and
// whose UID stands for one. (They are not empty: an empty label is none to Prometheus, which would fill in the agent's own namespace and pod.)
const (
	Other   = "other"
	Unknown = "unknown"
)

// Series is a pod's, or that of all others.
type Series struct {
	Namespace, Workload, Pod string
	Calls
}

// Series returns a bounded number, no two of which have the same names.
func (l *Ledger) Series() (list []Series) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sums := map[Series]Calls{{Namespace: Other, Workload: Other, Pod: Other}: l.Other}
	for uid, p := range l.Pods {
		of := Series{Namespace: Unknown, Workload: Unknown, Pod: uid}
		switch {
		case p.Unlisted:
			of = Series{Namespace: Other, Workload: Other, Pod: Other}
		case p.Calls == Calls{}: // only its details have come yet
			continue
		case p.Known != nil:
			of = Series{Namespace: p.Known.Namespace, Workload: p.Known.Workload.Name, Pod: p.Known.Name}
		}
		sum := sums[of]
		sum.add(p.series())
		sums[of] = sum
	}
	for of, sum := range sums {
		of.Calls = sum
		list = append(list, of)
	}
	return list
}

// Workloads returns the rows of the report, and since when it counts.
func (l *Ledger) Workloads() (since time.Time, rows []report.Workload) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sums := map[string]*gone{}
	for _, g := range l.Gone {
		g.addTo(sums)
	}
	for uid, p := range l.Pods {
		known := pods.Pod{Workload: pods.Workload{Name: uid}}
		if p.Known != nil {
			known = *p.Known
		}
		if p.Calls != (Calls{}) { // or it is let through, and only its requests were seen
			p.as(known).addTo(sums)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(sums)) {
		s := sums[key]
		rows = append(rows, report.Workload{
			Namespace: s.Namespace, Kind: s.Workload.Kind, Name: s.Workload.Name, HostNetwork: s.HostNetwork, Pods: s.Pods,
			Blocked: s.Calls.Blocked, Audited: s.Calls.Audited, First: s.First, Last: s.Last, Commands: s.Commands, Requests: s.Requests,
		})
	}
	return l.Since, rows
}

const (
	// nameless is for how long the log waits for a pod's name, and tellEvery is how often an event tells of the same pod.
	nameless  = 10 * time.Second
	tellEvery = time.Hour
)

// News is a pod to tell of.
type News struct {
	UID   string
	Known pods.Pod // empty if it has no name
	// Verdict is that of its last attempt.
	Verdict cgroup.Verdict
	Calls   Calls
	// Commands are those of the processes that have asked, and Requests what for.
	Commands []string
	Requests []report.Request
	// Log: it has asked for the first time, or with that verdict. Event: an event is due.
	Log, Event bool
}

// LeftOut is how many attempts are in no row of the report: there were too many pods.
func (l *Ledger) LeftOut() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Beyond.Blocked + l.Beyond.Audited
}

// News returns the pods that the log, or an event, has yet to tell of: once for each verdict, and the latter once an hour. They
// count as told. An event waits for that long after the first attempt: what is asked for may be seen by then.
//
// mayLog and mayTell are asked before one is told of; those that have to wait are returned the next time.
func (l *Ledger) News(now time.Time, wait time.Duration, mayLog, mayTell func() bool) (list []News) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, uid := range slices.Sorted(maps.Keys(l.Pods)) {
		p := l.Pods[uid]
		if p.Calls == (Calls{}) {
			continue
		}
		n := News{
			UID: uid, Calls: p.Calls, Verdict: p.Verdict, Commands: slices.Clone(p.Commands), Requests: slices.Clone(p.Requests),
			Log: !slices.Contains(p.Logged, p.Verdict) && (p.Known != nil || now.Sub(p.First) > nameless) && mayLog(),
			Event: p.Known != nil && (p.Last.After(p.Told.Add(tellEvery)) || !slices.Contains(p.ToldAs, p.Verdict)) && now.Sub(p.First) >= wait &&
				mayTell(),
		}
		if p.Known != nil {
			n.Known = *p.Known
		}
		if n.Event {
			if now.Sub(p.Told) > tellEvery {
				p.Told, p.ToldAs = now, nil
			}
			p.ToldAs = append(p.ToldAs, p.Verdict)
		}
		if n.Log {
			p.Logged = append(p.Logged, p.Verdict)
		}
		if n.Log || n.Event {
			l.changed = true
			list = append(list, n)
		}
	}
	return list
}

// Waiting reports that there is a pod that nobody has told of yet.
func (l *Ledger) Waiting() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.Pods {
		if p.Calls != (Calls{}) && (p.Logged == nil || p.Known != nil && p.Told.IsZero()) {
			return true
		}
	}
	return false
}

// Nameless reports that a pod has no name yet.
func (l *Ledger) Nameless() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range l.Pods {
		if p.Known == nil {
			return true
		}
	}
	return false
}

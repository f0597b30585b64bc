// The ledger's output: series, rows of the report, and news.

package attempts

import (
	"maps"
	"slices"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/report"
)

// Other is the namespace, workload and pod of the series that adds up all others. Unknown is the namespace and workload of a
// pod without a name, whose UID takes the place of its name. (They are not empty, because Prometheus treats an empty label as
// missing and would fill in the agent's own namespace and pod.)
const (
	Other   = "other"
	Unknown = "unknown"
)

// Series is the series of one pod, or the sum of all others.
type Series struct {
	Namespace, Workload, Pod string
	Calls
}

// Series returns a bounded number of series, no two of which have the same labels.
func (l *Ledger) Series() (list []Series) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sums := map[Series]Calls{{Namespace: Other, Workload: Other, Pod: Other}: l.Other}
	for uid, p := range l.Pods {
		of := Series{Namespace: Unknown, Workload: Unknown, Pod: uid}
		switch {
		case p.Unlisted:
			of = Series{Namespace: Other, Workload: Other, Pod: Other}
		case p.Calls == Calls{}: // so far only its details have arrived
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

// Workloads returns the rows of the report, and when counting began.
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
		if p.Calls != (Calls{}) { // otherwise it is let through, and only its requests were seen
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
	// nameless is how long the log waits for a pod's name, and tellEvery how often an event reports the same pod.
	nameless  = 10 * time.Second
	tellEvery = time.Hour
)

// News is a pod to report.
type News struct {
	UID   string
	Known pods.Pod // empty if it has no name
	// Verdict is the verdict on its last attempt.
	Verdict cgroup.Verdict
	Calls   Calls
	// Commands are the names of the processes that asked, and Requests what they asked for.
	Commands []string
	Requests []report.Request
	// Log: the pod asked for the first time, or for the first time with this verdict. Event: an event is due.
	Log, Event bool
}

// LeftOut returns how many attempts are in no row of the report, because there were too many pods.
func (l *Ledger) LeftOut() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Beyond.Blocked + l.Beyond.Audited
}

// News returns the pods still to be reported by the log or by an event: once for each verdict, and in an event once an hour. They
// then count as reported. An event is delayed by wait after the first attempt, so that it can say what was asked for.
//
// mayLog and mayTell limit the rate; pods that have to wait are returned the next time.
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

// Waiting reports whether there is a pod that has not been reported yet.
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

// Nameless reports whether there is a pod without a name.
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

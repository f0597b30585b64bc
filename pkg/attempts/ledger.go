// Package attempts keeps the ledger of who asks for the endpoint: the kernel's counts by cgroup, added up by pod and by workload, with
// names as far as the API server has supplied them.
//
// It only receives information and never asks for any. Names may arrive long after the attempts, or never; nothing waits for them.
package attempts

import (
	"cmp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/report"
	"github.com/imds-guard/imds-guard/pkg/request"
)

const (
	// kept is how long a pod keeps its own entry after its last attempt and its end. After that it is only part of its
	// workload's sum.
	kept = 10 * time.Minute
	// mostSeries is how many pods get their own series, and mostPods how many get their own entry; mostWorkloads is the same
	// for the sums of pods that are gone. Everything beyond goes into one common sum. All of it has to fit into the agent's
	// memory.
	mostSeries    = 500
	mostPods      = 1000
	mostWorkloads = 200
	// mostCommands and mostRequests bound what is kept of one pod or workload, since clients choose both.
	mostCommands = 10
	mostRequests = 10
	// mostCounters bounds how many of the kernel's counters are remembered.
	mostCounters = 10_000
)

// Ledger may be used from any goroutine. See New.
type Ledger struct {
	mu sync.Mutex
	state
	changed bool // since it was saved
	// early are requests whose pod is not known yet.
	early map[cgroup.Asker][]report.Request
}

// state is what is saved to a file and outlives the agent.
type state struct {
	Since time.Time
	// Counters are the kernel's counters as last read, and the pods that they belong to.
	Counters map[cgroup.Asker]*counter
	Pods     map[string]*pod // by UID, or by the number of a cgroup that belongs to no known pod
	// Gone are the sums of pods that are gone, by workload.
	Gone map[string]*gone
	// Other is the sum of all gone pods that had no series of their own. Beyond is the sum of everything that is in no pod's or
	// workload's sum.
	Other, Beyond Calls
}

type counter struct {
	Pod   string
	Count uint64
	Began uint64 // see cgroup.Count
}

// Calls is how many calls were refused, and how many were only counted.
type Calls struct{ Blocked, Audited uint64 }

func (c *Calls) add(more Calls) {
	c.Blocked += more.Blocked
	c.Audited += more.Audited
}

// calls returns n calls of one verdict.
func calls(v cgroup.Verdict, n uint64) Calls {
	if v == cgroup.Audited {
		return Calls{Audited: n}
	}
	return Calls{Blocked: n}
}

// tally is what is known of the attempts of a pod or workload.
type tally struct {
	Calls       Calls
	First, Last time.Time
	Commands    []string         `json:",omitempty"`
	Requests    []report.Request `json:",omitempty"`
}

type pod struct {
	tally
	// Known is what the API server says about the pod; nil if nothing.
	Known *pods.Pod `json:",omitempty"`
	// Unlisted: the pod has no series of its own.
	Unlisted bool `json:",omitempty"`
	// Before are the calls of earlier pods with the same name, whose series this pod continues.
	Before Calls
	// Verdict is that of the last attempt that was counted.
	Verdict cgroup.Verdict
	// Alive is when the pod was last in the API server's list. Logged are the verdicts that were logged, and ToldAs the ones
	// that events have reported since Told.
	Alive  time.Time
	Logged []cgroup.Verdict
	Told   time.Time
	ToldAs []cgroup.Verdict
}

type gone struct {
	tally
	Namespace   string
	Workload    pods.Workload
	HostNetwork bool
	Pods        int
}

// New makes an empty ledger that starts now.
func New(now time.Time) *Ledger {
	return &Ledger{early: map[cgroup.Asker][]report.Request{}, state: state{Since: now, Counters: map[cgroup.Asker]*counter{}, Pods: map[string]*pod{}, Gone: map[string]*gone{}}}
}

// Owners returns the UIDs of the pods that askers are in; empty for those that are in none. An asker for which this can't be
// said now is left out, and asked for again the next time. It may take long, and is called without a lock.
type Owners func(...cgroup.Asker) map[cgroup.Asker]string

// Counted takes in the kernel's counts; whole says that none is missing.
func (l *Ledger) Counted(counts []cgroup.Count, whole bool, owners Owners) {
	var askers []cgroup.Asker
	for _, c := range counts {
		askers = append(askers, c.Asker)
	}
	l.ask(owners, askers...)
	l.mu.Lock()
	defer l.mu.Unlock()
	slices.SortFunc(counts, func(a, b cgroup.Count) int { return a.Last.Compare(b.Last) })
	for _, c := range counts {
		read := l.Counters[c.Asker]
		if read == nil {
			continue
		}
		if c.Began != read.Began {
			read.Began, read.Count = c.Began, 0
		}
		if c.Attempts <= read.Count { // an older entry of the same asker, since the map was written to during the reading
			continue
		}
		more := c.Attempts - read.Count
		read.Count = c.Attempts
		l.changed = true
		p := l.pod(read.Pod, c.Last)
		if p == nil {
			l.Other.add(calls(c.Verdict, more))
			l.Beyond.add(calls(c.Verdict, more))
			continue
		}
		p.Calls.add(calls(c.Verdict, more))
		p.Last, p.Verdict = c.Last, c.Verdict
		p.requested(l.early[c.Asker]...)
		delete(l.early, c.Asker)
	}
	if whole {
		l.boundCounters(counts)
	}
}

// ask finds out to which pods the askers' counters belong, and adds the new ones. That has to be done while the cgroup exists.
func (l *Ledger) ask(owners Owners, askers ...cgroup.Asker) {
	l.mu.Lock()
	var unknown []cgroup.Asker
	for _, a := range askers {
		if read := l.Counters[a]; read == nil || read.Pod == numberOf(a) {
			unknown = append(unknown, a)
		}
	}
	l.mu.Unlock()
	if len(unknown) == 0 {
		return
	}
	known := owners(unknown...)
	l.mu.Lock()
	defer l.mu.Unlock()
	for a, uid := range known {
		switch read := l.Counters[a]; {
		case read == nil:
			l.Counters[a], l.changed = &counter{Pod: cmp.Or(uid, numberOf(a))}, true
		case uid != "":
			read.Pod = uid
		}
	}
}

// numberOf returns a number that takes the place of the UID for an asker that is in no pod.
func numberOf(a cgroup.Asker) string { return strconv.FormatUint(cmp.Or(a.Second, a.Top), 10) }

// boundCounters forgets the counters that the kernel no longer has, if there are too many.
func (l *Ledger) boundCounters(counts []cgroup.Count) {
	if len(l.Counters) <= mostCounters {
		return
	}
	kept := map[cgroup.Asker]*counter{}
	for _, c := range counts {
		if read := l.Counters[c.Asker]; read != nil {
			kept[c.Asker] = read
		}
	}
	l.Counters = kept
}

// pod returns the entry of a UID, a new one if necessary; nil if there are too many.
func (l *Ledger) pod(uid string, now time.Time) *pod {
	if p := l.Pods[uid]; p != nil {
		return p
	}
	if len(l.Pods) >= mostPods {
		return nil
	}
	p := &pod{Unlisted: l.listed() >= mostSeries}
	p.First = now
	l.Pods[uid], l.changed = p, true
	return p
}

func (l *Ledger) listed() (n int) {
	for _, p := range l.Pods {
		if !p.Unlisted {
			n++
		}
	}
	return n
}

// Attempted takes in the details of one attempt.
func (l *Ledger) Attempted(a cgroup.Attempt, owners Owners, now time.Time) {
	l.ask(owners, a.Asker)
	l.mu.Lock()
	defer l.mu.Unlock()
	read := l.Counters[a.Asker]
	if read == nil {
		return
	}
	if p := l.pod(read.Pod, now); p != nil {
		l.changed = p.called(a.Command) || l.changed
		if p.Verdict == 0 {
			p.Verdict = a.Verdict
		}
	}
}

// called adds a command's name.
func (t *tally) called(names ...string) (changed bool) {
	for _, name := range names {
		if i, known := slices.BinarySearch(t.Commands, name); name != "" && !known && len(t.Commands) < mostCommands {
			t.Commands, changed = slices.Insert(t.Commands, i, name), true
		}
	}
	return changed
}

// Requested takes in one request.
func (l *Ledger) Requested(by cgroup.Asker, r request.Request, owners Owners, now time.Time) {
	by.Verdict = cgroup.Audited // as its attempt was counted
	l.ask(owners, by)
	l.mu.Lock()
	defer l.mu.Unlock()
	one := report.Request{Version: r.Version, Document: r.Document, Agent: r.Agent, Count: 1}
	read := l.Counters[by]
	if read == nil {
		if of := l.early[by]; len(of) < mostRequests && len(l.early) < mostPods {
			l.early[by] = append(of, one)
		}
		return
	}
	if p := l.pod(read.Pod, now); p != nil {
		p.requested(one)
		l.changed = true
	}
}

// requested adds requests. Beyond the bound it no longer tells their clients apart.
func (t *tally) requested(more ...report.Request) {
	for _, r := range more {
		i := slices.IndexFunc(t.Requests, func(known report.Request) bool { return isSame(known, r) })
		if i < 0 && len(t.Requests) >= mostRequests {
			r.Agent = ""
			i = slices.IndexFunc(t.Requests, func(known report.Request) bool { return isSame(known, r) })
		}
		if i < 0 {
			t.Requests = append(t.Requests, r)
		} else {
			t.Requests[i].Count += r.Count
		}
	}
}

func isSame(a, b report.Request) bool {
	return a.Version == b.Version && a.Document == b.Document && a.Agent == b.Agent
}

// Named takes in the existing pods, and those that ended recently.
func (l *Ledger) Named(all []pods.Pod, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, known := range all {
		p := l.Pods[known.UID]
		if p == nil {
			continue
		}
		if p.Known == nil {
			p.Known, l.changed = &known, true
			l.succeed(known.UID, p)
		}
		if !known.Ended {
			p.Alive = now
		}
	}
}

// succeed lets a pod continue the series of earlier pods with the same name: a StatefulSet's, or a static pod's. One that has
// ended and still asks counts as earlier than the one that has the name now.
func (l *Ledger) succeed(uid string, p *pod) {
	for other, q := range l.Pods {
		if other == uid || q.Known == nil || q.Known.Namespace != p.Known.Namespace || q.Known.Name != p.Known.Name {
			continue
		}
		before, gone, now := q, other, p
		if p.Known.Ended {
			before, gone, now = p, uid, q
		}
		delete(l.Pods, gone)
		if !before.Unlisted {
			now.Before.add(before.series())
		}
		l.fold(*before.Known, before)
		if before == p {
			return
		}
	}
}

// series returns the value of a pod's series.
func (p *pod) series() Calls {
	sum := p.Before
	sum.add(p.Calls)
	return sum
}

// Ended is a pod that no longer has an entry of its own.
type Ended struct {
	UID   string
	Known pods.Pod
	Calls Calls
}

// Expire moves pods that have ended and have not asked for a long time into their workloads' sums, and returns them. It relies
// on Named to know which pods have ended.
func (l *Ledger) Expire(now time.Time) (ended []Ended) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for uid, p := range l.Pods {
		if now.Sub(latest(latest(p.First, p.Last), p.Alive)) < kept {
			continue
		}
		delete(l.Pods, uid)
		l.changed = true
		e := Ended{UID: uid, Calls: p.Calls}
		if p.Known != nil {
			e.Known = *p.Known
		}
		if p.Calls != (Calls{}) {
			ended = append(ended, e)
			l.fold(e.Known, p)
		}
	}
	return ended
}

func (l *Ledger) fold(known pods.Pod, p *pod) {
	if p.Unlisted {
		l.Other.add(p.series())
	}
	g := p.as(known)
	if l.Gone[g.key()] == nil && len(l.Gone) >= mostWorkloads {
		l.Beyond.add(p.Calls)
		return
	}
	g.addTo(l.Gone)
}

// as returns what a pod adds to the sum of its workload.
func (p *pod) as(known pods.Pod) gone {
	return gone{p.tally, known.Namespace, known.Workload, known.HostNetwork, 1}
}

func (g gone) key() string { return g.Namespace + "/" + g.Workload.Kind + "/" + g.Workload.Name }

func (g gone) addTo(sums map[string]*gone) {
	sum := sums[g.key()]
	if sum == nil {
		sum = &gone{Namespace: g.Namespace, Workload: g.Workload}
		sums[g.key()] = sum
	}
	sum.HostNetwork = sum.HostNetwork || g.HostNetwork
	sum.Pods += g.Pods
	sum.add(g.tally)
}

func (t *tally) add(more tally) {
	t.Calls.add(more.Calls)
	if t.First.IsZero() || more.First.Before(t.First) {
		t.First = more.First
	}
	t.Last = latest(t.Last, more.Last)
	t.called(more.Commands...)
	t.requested(more.Requests...)
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

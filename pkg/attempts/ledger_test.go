package attempts

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/pods"
	"github.com/imds-guard/imds-guard/pkg/report"
	"github.com/imds-guard/imds-guard/pkg/request"
)

var start = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// uidOf makes every cgroup a pod's own.
func uidOf(askers ...cgroup.Asker) map[cgroup.Asker]string {
	uids := map[cgroup.Asker]string{}
	for _, a := range askers {
		uids[a] = "uid-" + strconv.FormatUint(a.Second, 10)
	}
	return uids
}

// nobody can't identify any asker at the moment; nobodys says of every asker that it belongs to no pod.
func nobody(...cgroup.Asker) map[cgroup.Asker]string { return nil }

func nobodys(askers ...cgroup.Asker) map[cgroup.Asker]string {
	uids := map[cgroup.Asker]string{}
	for _, a := range askers {
		uids[a] = ""
	}
	return uids
}

func asker(id uint64, v cgroup.Verdict) cgroup.Asker {
	return cgroup.Asker{Top: 1, Second: id, Verdict: v}
}

func blocked(id, n uint64, at time.Time) cgroup.Count {
	return cgroup.Count{Asker: asker(id, cgroup.Blocked), Attempts: n, Last: at, Began: 1}
}

func always() bool { return true }

func named(id uint64, name, workload string) pods.Pod {
	return pods.Pod{UID: "uid-" + strconv.FormatUint(id, 10), Namespace: "shop", Name: name, Workload: pods.Workload{Kind: "Deployment", Name: workload}}
}

// sum returns the total of all series.
func sum(series []Series) (all Calls) {
	for _, s := range series {
		all.add(s.Calls)
	}
	return all
}

func find(series []Series, pod string) (found []Series) {
	for _, s := range series {
		if s.Pod == pod {
			found = append(found, s)
		}
	}
	return found
}

// The kernel's counters are added up, even when they start over; names arrive later and take over the attempts.
func TestCounted(t *testing.T) {
	l := New(start)
	for _, n := range []uint64{1, 2, 2} {
		l.Counted([]cgroup.Count{blocked(1, n, start)}, true, uidOf)
	}
	anew := blocked(1, 5, start) // more than the one before has stood at
	anew.Began = 2
	l.Counted([]cgroup.Count{anew}, true, uidOf)
	l.Counted([]cgroup.Count{{Asker: asker(1, cgroup.Audited), Attempts: 4, Last: start}}, true, uidOf)
	want := Series{Unknown, Unknown, "uid-1", Calls{Blocked: 7, Audited: 4}}
	if got := find(l.Series(), "uid-1"); !slices.Equal(got, []Series{want}) {
		t.Errorf("before it has a name: %+v", got)
	}
	l.Named([]pods.Pod{named(1, "web-1", "web"), named(2, "db-0", "db")}, start)
	want = Series{"shop", "web", "web-1", want.Calls}
	if got := l.Series(); len(got) != 2 || !slices.Contains(got, want) || !slices.Contains(got, Series{Other, Other, Other, Calls{}}) {
		t.Errorf("with a name: %+v", got)
	}
}

// If a cgroup's pod can't be determined now, it is asked for again, and nothing is counted until then. A cgroup that belongs to
// no pod is counted as such.
func TestOwnerComesLater(t *testing.T) {
	l := New(start)
	counts := []cgroup.Count{blocked(1, 3, start)}
	l.Counted(counts, true, nobody)
	l.Attempted(cgroup.Attempt{Asker: counts[0].Asker, Command: "curl"}, nobody, start)
	if got := l.Series(); len(got) != 1 || got[0].Calls != (Calls{}) {
		t.Errorf("counted: %+v", got)
	}
	l.Counted(counts, true, nobodys)
	if got := find(l.Series(), "1"); len(got) != 1 || got[0].Blocked != 3 {
		t.Errorf("of nobody: %+v", got)
	}
	l.Counted([]cgroup.Count{blocked(1, 5, start)}, true, uidOf)
	if got := find(l.Series(), "uid-1"); len(got) != 1 || got[0].Blocked != 2 {
		t.Errorf("of a pod: %+v", got)
	}
	l.Counted([]cgroup.Count{blocked(1, 6, start)}, true, func(...cgroup.Asker) map[cgroup.Asker]string { t.Error("asked again"); return nil })
}

// The same holds for requests: none is lost, within bounds.
func TestRequestBeforeItsOwner(t *testing.T) {
	l := New(start)
	for range 3 * mostRequests {
		l.Requested(asker(1, 0), request.Request{Version: request.V2, Document: request.Credentials}, nobody, start)
	}
	for i := range uint64(2 * mostPods) {
		l.Requested(asker(i, 0), request.Request{Version: request.V2, Document: request.Token}, nobody, start)
	}
	l.Counted([]cgroup.Count{{Asker: asker(1, cgroup.Audited), Attempts: 1, Last: start, Began: 1}}, true, uidOf)
	_, rows := l.Workloads()
	want := []report.Request{{Version: request.V2, Document: request.Credentials, Count: mostRequests}}
	if len(rows) != 1 || !reflect.DeepEqual(rows[0].Requests, want) || len(l.early) > mostPods {
		t.Errorf("the report: %+v, and %d are waiting", rows, len(l.early))
	}
}

// Ten thousand pods that come and go leave a bounded number of series and of memory, and no attempt is lost.
func TestManyPods(t *testing.T) {
	l := New(start)
	const many = 10_000
	for i := range uint64(many) {
		at := start.Add(time.Duration(i) * time.Millisecond)
		l.Counted([]cgroup.Count{blocked(i+1, 1, at)}, true, uidOf)
		l.Named([]pods.Pod{named(i+1, fmt.Sprint("job-", i), "job")}, at)
	}
	series := l.Series()
	if len(series) != mostSeries+1 || sum(series).Blocked != many {
		t.Errorf("%d series have %d attempts", len(series), sum(series).Blocked)
	}
	if len(l.Pods) > mostPods || len(l.Counters) > mostCounters {
		t.Errorf("%d pods, %d counters", len(l.Pods), len(l.Counters))
	}
	_, rows := l.Workloads()
	if len(rows) != 1 || rows[0].Blocked != mostPods || rows[0].Pods != mostPods {
		t.Errorf("the report: %+v", rows)
	}
	before := find(series, Other)
	l.Expire(start.Add(time.Hour))
	after := l.Series()
	if len(after) != 1 || after[0].Blocked != before[0].Blocked || before[0].Blocked != many-mostSeries {
		t.Errorf("after their end: %+v, before %+v", after, before)
	}
	if _, rows := l.Workloads(); len(rows) != 1 || rows[0].Blocked != mostPods {
		t.Errorf("the report after their end: %+v", rows)
	}
}

// A series disappears only some time after its pod, and a new pod with the same name continues it: a counter must never
// decrease.
func TestExpire(t *testing.T) {
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 3, start)}, true, uidOf)
	l.Named([]pods.Pod{named(1, "db-0", "db")}, start.Add(time.Minute))
	if ended := l.Expire(start.Add(kept)); len(ended) != 0 {
		t.Errorf("ended: %+v", ended)
	}
	l.Counted([]cgroup.Count{blocked(2, 2, start)}, true, uidOf)
	l.Named([]pods.Pod{named(2, "db-0", "db")}, start.Add(2*time.Minute))
	if got := find(l.Series(), "db-0"); len(got) != 1 || got[0].Blocked != 5 {
		t.Errorf("with a pod of the same name: %+v", got)
	}
	if ended := l.Expire(start.Add(2*time.Minute + kept)); len(ended) != 1 || ended[0].Calls.Blocked != 2 || ended[0].Known.Name != "db-0" {
		t.Errorf("ended: %+v", ended)
	}
	_, rows := l.Workloads()
	if len(rows) != 1 || rows[0].Blocked != 5 || rows[0].Pods != 2 || rows[0].Name != "db" {
		t.Errorf("the report: %+v", rows)
	}
}

// What is asked for, and by which commands, is bounded.
func TestDetails(t *testing.T) {
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 1, start)}, true, uidOf)
	for i := range 100 {
		l.Attempted(cgroup.Attempt{Asker: asker(1, cgroup.Blocked), Command: fmt.Sprint("c", i%30)}, uidOf, start)
		l.Requested(asker(1, 0), request.Request{Version: request.V1, Document: request.Credentials, Agent: fmt.Sprint("a", i%40)}, uidOf, start)
	}
	_, rows := l.Workloads()
	if len(rows) != 1 || len(rows[0].Commands) != mostCommands || len(rows[0].Requests) != mostRequests+1 {
		t.Fatalf("the report: %+v", rows)
	}
	var all uint64
	for _, r := range rows[0].Requests {
		all += r.Count
	}
	if all != 100 || !slices.IsSorted(rows[0].Commands) {
		t.Errorf("%d requests, commands %v", all, rows[0].Commands)
	}
}

// The log reports a pod once, as soon as it has a name, or without one after a while; events report it once an hour for as long
// as it asks.
func TestNews(t *testing.T) {
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 1, start), blocked(2, 1, start)}, true, uidOf)
	l.Named([]pods.Pod{named(1, "web-1", "web")}, start)
	news := func(at time.Time) (told []string) {
		for _, n := range l.News(at, 2*time.Second, always, always) {
			told = append(told, fmt.Sprint(n.UID, n.Known.Name, n.Log, n.Event))
		}
		return told
	}
	for _, c := range []struct {
		after time.Duration
		asks  bool
		want  []string
	}{
		{0, false, []string{"uid-1web-1true false"}},
		{time.Second, false, nil},
		{2 * time.Second, false, []string{"uid-1web-1false true"}},
		{11 * time.Second, false, []string{"uid-2true false"}},
		{30 * time.Minute, true, nil},
		{61 * time.Minute, false, nil},
		{62 * time.Minute, true, []string{"uid-1web-1false true"}},
		{63 * time.Minute, true, nil},
	} {
		at := start.Add(c.after)
		if c.asks {
			l.Counted([]cgroup.Count{blocked(1, uint64(at.Unix()), at)}, true, uidOf)
		}
		if got := news(at); !slices.Equal(got, c.want) {
			t.Errorf("after %s: %q, want %q", c.after, got, c.want)
		}
	}
	at := start.Add(64 * time.Minute)
	l.Counted([]cgroup.Count{{Asker: asker(1, cgroup.Audited), Attempts: 1, Last: at}}, true, uidOf)
	if got := news(at); !slices.Equal(got, []string{"uid-1web-1true true"}) {
		t.Errorf("when it is refused no more: %q", got)
	}
}

// The ledger outlives the agent, including the last values of the kernel's counters. An invalid file causes an error and
// nothing worse.
func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "some", "attempts.json")
	l := New(start)
	if err := l.Load(file, start); err != nil {
		t.Fatal(err)
	}
	l.Counted([]cgroup.Count{blocked(1, 3, start)}, true, uidOf)
	l.Requested(asker(1, 0), request.Request{Version: request.V2, Document: request.Token}, uidOf, start)
	l.Named([]pods.Pod{named(1, "web-1", "web")}, start)
	if err := l.Save(file); err != nil {
		t.Fatal(err)
	}
	again := New(start.Add(time.Hour))
	if err := again.Load(file, start); err != nil {
		t.Fatal(err)
	}
	again.Counted([]cgroup.Count{blocked(1, 4, start)}, true, uidOf)
	since, rows := again.Workloads()
	want := []report.Workload{{
		Namespace: "shop", Kind: "Deployment", Name: "web", Pods: 1, Blocked: 4, First: start, Last: start,
		Requests: []report.Request{{Version: request.V2, Document: request.Token, Count: 1}},
	}}
	if !since.Equal(start) || !reflect.DeepEqual(rows, want) {
		t.Errorf("since %s: %+v", since, rows)
	}
	for _, text := range []string{"", "{", "[]", `{"Pods": {"a": null}}`, `{"Counters": {"a": null}}`, `{"Gone": {"a": null}}`, `{"Pods": null}`, `{"Since": 1}`} {
		write(t, file, text)
		l := New(start)
		if err := l.Load(file, start); err == nil {
			t.Errorf("%q is a ledger", text)
		}
		l.Counted([]cgroup.Count{blocked(1, 4, start)}, true, uidOf)
		if since, rows := l.Workloads(); !since.Equal(start) || len(rows) != 1 {
			t.Errorf("after %q: since %s: %+v", text, since, rows)
		}
	}
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A pod's first attempt is reported with the right verdict, whichever arrives first, its details or its count.
func TestVerdictOfTheFirst(t *testing.T) {
	for _, v := range []cgroup.Verdict{cgroup.Audited, cgroup.Blocked} {
		l := New(start)
		l.Attempted(cgroup.Attempt{Asker: asker(1, v), Command: "curl"}, uidOf, start.Add(time.Millisecond)) // heard of after it was made
		l.Counted([]cgroup.Count{{Asker: asker(1, v), Attempts: 1, Last: start}}, true, uidOf)
		l.Named([]pods.Pod{named(1, "web-1", "web")}, start)
		if got := l.News(start, 0, always, always); len(got) != 1 || got[0].Verdict != v {
			t.Errorf("verdict %d: %+v", v, got)
		}
	}
}

// What the rate limit holds back is reported later.
func TestNewsWait(t *testing.T) {
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 1, start)}, true, uidOf)
	l.Named([]pods.Pod{named(1, "web-1", "web")}, start)
	never := func() bool { return false }
	if got := l.News(start, 0, never, never); len(got) != 0 || !l.Waiting() {
		t.Errorf("told: %+v", got)
	}
	if got := l.News(start, 0, always, always); len(got) != 1 || !got[0].Log || !got[0].Event || l.Waiting() {
		t.Errorf("told: %+v", got)
	}
}

// A pod that has ended, and whose name comes late, doesn't take the place of the one that has the name now.
func TestSucceedByTheLiving(t *testing.T) {
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 1, start), blocked(2, 2, start)}, true, uidOf)
	old := named(1, "db-0", "db")
	old.Ended = true
	l.Named([]pods.Pod{named(2, "db-0", "db")}, start)
	l.Named([]pods.Pod{old}, start)
	if _, rows := l.Workloads(); len(rows) != 1 || rows[0].Pods != 2 || rows[0].Blocked != 3 {
		t.Errorf("the report: %+v", rows)
	}
	if got := find(l.Series(), "db-0"); len(got) != 1 || got[0].Blocked != 3 {
		t.Errorf("its series: %+v", got)
	}
}

// No two series have the same names, whatever pods are called.
func TestSeriesAreDistinct(t *testing.T) {
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 1, start), blocked(2, 2, start)}, true, uidOf)
	p := named(1, Other, Other)
	p.Namespace = Other
	l.Named([]pods.Pod{p, named(2, "web-1", "web")}, start)
	if got := l.Series(); len(got) != 2 || sum(got).Blocked != 3 {
		t.Errorf("%+v", got)
	}
}

// After a partial reading nothing is forgotten, and an older value of a counter takes nothing back.
func TestReadInPart(t *testing.T) {
	l := New(start)
	var counts []cgroup.Count
	for i := range uint64(mostCounters + 2) {
		counts = append(counts, blocked(i, 2, start))
	}
	l.Counted(counts, false, uidOf)
	before := sum(l.Series())
	l.Counted(counts[:1], false, uidOf)
	l.Counted([]cgroup.Count{blocked(3, 1, start)}, false, uidOf)
	l.Counted(counts, true, uidOf)
	if after := sum(l.Series()); after != before || before.Blocked != 2*uint64(len(counts)) {
		t.Errorf("%+v, and before %+v", after, before)
	}
}

// A pod that asks in two ways, with two verdicts, is reported exactly twice.
func TestTwoVerdicts(t *testing.T) {
	l := New(start)
	told := 0
	for i := range uint64(20) {
		v := []cgroup.Verdict{cgroup.Blocked, cgroup.Audited}[i%2]
		at := start.Add(time.Duration(i) * time.Second)
		l.Counted([]cgroup.Count{{Asker: asker(1, v), Attempts: i + 1, Last: at, Began: 1}}, true, uidOf)
		l.Named([]pods.Pod{named(1, "web-1", "web")}, at)
		told += len(l.News(at, 0, always, always))
	}
	if told != 2 || l.Waiting() {
		t.Errorf("told of %d times", told)
	}
}

// A new agent keeps the earlier agent's pods until it is told which exist.
func TestLoadKeepsTheLiving(t *testing.T) {
	file := filepath.Join(t.TempDir(), "attempts.json")
	l := New(start)
	l.Counted([]cgroup.Count{blocked(1, 3, start)}, true, uidOf)
	if err := l.Save(file); err != nil {
		t.Fatal(err)
	}
	again, later := New(start), start.Add(time.Hour)
	if err := again.Load(file, later); err != nil {
		t.Fatal(err)
	}
	if ended := again.Expire(later.Add(time.Minute)); len(ended) > 0 {
		t.Errorf("ended: %+v", ended)
	}
}

// A full ledger is small enough to be read again, and a larger file is not read.
func TestFullLedger(t *testing.T) {
	file := filepath.Join(t.TempDir(), "attempts.json")
	l := New(start)
	for i := range uint64(2 * (mostPods + mostWorkloads)) {
		at := start.Add(time.Duration(i) * time.Hour)
		l.Counted([]cgroup.Count{blocked(i, 1, at)}, true, uidOf)
		p := named(i, fmt.Sprint(strings.Repeat("n", 200), i), fmt.Sprint(strings.Repeat("w", 200), i))
		l.Named([]pods.Pod{p}, at)
		for j := range 2 * mostRequests {
			l.Requested(asker(i, 0), request.Request{Version: request.V1, Document: request.Credentials, Agent: strings.Repeat("a", 60) + strconv.Itoa(j)}, uidOf, at)
			l.Attempted(cgroup.Attempt{Asker: asker(i, cgroup.Blocked), Command: fmt.Sprint("command-", j)}, uidOf, at)
		}
		if i < mostWorkloads+10 {
			l.Expire(at.Add(time.Hour))
		}
	}
	if err := l.Save(file); err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(file)
	if err != nil || is.Size() > mostBytes {
		t.Errorf("%d bytes, %v", is.Size(), err)
	}
	if err := New(start).Load(file, start); err != nil {
		t.Error(err)
	}
	if _, rows := l.Workloads(); len(rows) > mostPods+mostWorkloads || l.LeftOut() == 0 {
		t.Errorf("%d rows, %d left out", len(rows), l.LeftOut())
	}
	write(t, file, `{"Pods": {"`+strings.Repeat("x", mostBytes)+`": {}}}`)
	if err := New(start).Load(file, start); err == nil {
		t.Error("a file that is too large is read")
	}
}

package pods

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

func pod(name, uid string, phase corev1.PodPhase, change func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid), ResourceVersion: "1", Labels: map[string]string{"a": "b"}},
		Spec:       corev1.PodSpec{HostNetwork: true, Containers: []corev1.Container{{Name: "c"}}},
		Status:     corev1.PodStatus{Phase: phase},
	}
	if change != nil {
		change(&p)
	}
	return p
}

// The list contains the pods that have not ended, static ones under the UID in their cgroup's name, and does not count as
// complete before the API server has answered. Each change is reported.
func TestList(t *testing.T) {
	t.Parallel()
	answers := make(chan *corev1.PodList)
	events := watch.NewFake()
	changed := make(chan struct{}, 100)
	w := newWatch(&cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) { return <-answers, nil },
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, context.DeadlineExceeded // the server knows no streaming of lists
			}
			return events, nil
		},
	}, func() { changed <- struct{}{} })
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { w.Run(ctx); close(stopped) }()
	defer func() { cancel(); <-stopped }()
	if list, known := w.List(); known || len(list) > 0 {
		t.Errorf("before the API server has answered: %v", list)
	}
	static := func(p *corev1.Pod) {
		p.Annotations = map[string]string{configHash: "hash", configMirror: "hash", "other": "x"}
	}
	answers <- &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: []corev1.Pod{
		pod("one", "u1", corev1.PodRunning, nil), pod("static", "u2", corev1.PodPending, static),
		pod("done", "u3", corev1.PodSucceeded, nil), pod("failed", "u4", corev1.PodFailed, nil),
		pod("own", "u5", corev1.PodRunning, func(p *corev1.Pod) {
			p.Spec.HostNetwork, p.Annotations = false, map[string]string{configHash: "somebody else's"}
		}),
	}}
	must := func(want string) {
		t.Helper()
		var got []string
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			got = nil
			list, known := w.List()
			for _, p := range list {
				text := p.Name + ":" + p.UID
				if p.HostNetwork {
					text += ":host"
				}
				got = append(got, text)
			}
			slices.Sort(got)
			if known && strings.Join(got, " ") == want {
				return
			}
		}
		t.Fatalf("%v, want %s", got, want)
	}
	must("one:u1:host own:u5 static:hash:host")
	for range 5 {
		<-changed
	}
	late := pod("late", "u6", corev1.PodRunning, nil)
	events.Add(&late)
	<-changed
	must("late:u6:host one:u1:host own:u5 static:hash:host")
	late.Status.Phase = corev1.PodSucceeded
	late.ResourceVersion = "2"
	events.Modify(&late)
	<-changed
	must("one:u1:host own:u5 static:hash:host")
	one := pod("one", "u1", corev1.PodRunning, nil)
	events.Delete(&one)
	<-changed
	must("own:u5 static:hash:host")
	var ended []string
	known, _ := w.Known()
	for _, p := range known {
		if p.Ended {
			ended = append(ended, p.Name)
		}
	}
	if slices.Sort(ended); !slices.Equal(ended, []string{"done", "failed", "late", "one"}) {
		t.Errorf("of those that have ended these are known: %q", ended)
	}
	for _, item := range w.store.List() {
		if p := item.(*corev1.Pod); len(p.Labels)+len(p.Spec.Containers) > 0 || len(p.Annotations) > 2 {
			t.Errorf("more is kept of %s than is needed: %+v", p.Name, p)
		}
	}
}

// A deleted pod stays known for a while, up to a maximum number.
func TestGone(t *testing.T) {
	w := newWatch(&cache.ListWatch{}, func() {})
	now := time.Now()
	old, late := pod("old", "u1", corev1.PodRunning, nil), pod("late", "u2", corev1.PodRunning, nil)
	w.bury(&old, now.Add(-goneFor-time.Second))
	w.bury(cache.DeletedFinalStateUnknown{Obj: &late}, now)
	w.bury(cache.DeletedFinalStateUnknown{Obj: "what"}, now)
	if known, _ := w.Known(); len(known) != 1 || known[0].Name != "late" || !known[0].Ended {
		t.Errorf("known: %+v", known)
	}
	for i := range 3 * mostGone {
		p := pod("p", strconv.Itoa(i), corev1.PodRunning, nil)
		w.bury(&p, now)
	}
	if known, _ := w.Known(); len(known) > mostGone {
		t.Errorf("%d are known", len(known))
	}
}

// A pod's workload is what people call it: the Deployment instead of its ReplicaSet, the CronJob instead of its Job.
func TestWorkload(t *testing.T) {
	yes, no, long := true, false, strings.Repeat("x", 1<<20)
	owned := func(kind, name string, controller *bool, hash string) *corev1.Pod {
		p := pod("p", "u", corev1.PodRunning, nil)
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "o"}, {Kind: kind, Name: name, Controller: controller}}
		p.Labels = map[string]string{templateHash: hash}
		return &p
	}
	bare := pod("p", "u", corev1.PodRunning, nil)
	for _, c := range []struct {
		pod  *corev1.Pod
		want Workload
	}{
		{&bare, Workload{"Pod", "p"}},
		{owned("ReplicaSet", "web-77d", &yes, "77d"), Workload{"Deployment", "web"}},
		{owned("ReplicaSet", "web-77d", &yes, "88e"), Workload{"ReplicaSet", "web-77d"}},
		{owned("ReplicaSet", "web", &yes, ""), Workload{"ReplicaSet", "web"}},
		{owned("StatefulSet", "db", &yes, ""), Workload{"StatefulSet", "db"}},
		{owned("StatefulSet", "db", &no, ""), Workload{"Pod", "p"}},
		{owned("StatefulSet", "db", nil, ""), Workload{"Pod", "p"}},
		{owned("Job", "nightly-29012345", &yes, ""), Workload{"CronJob", "nightly"}},
		{owned("Job", "import-1", &yes, ""), Workload{"Job", "import-1"}},
		{owned("Job", "import-20260101", &yes, ""), Workload{"Job", "import-20260101"}},
		{owned(long, long, &yes, ""), Workload{long[:253], long[:253]}},
		{owned("Node", "n", &yes, ""), Workload{"Pod", "p"}},
	} {
		small, err := reduce(c.pod)
		if err != nil {
			t.Fatal(err)
		}
		if got := podOf(small.(*corev1.Pod)).Workload; got != c.want {
			t.Errorf("%.200s: %.200s, want %.200s", fmt.Sprint(c.pod.OwnerReferences), fmt.Sprint(got), fmt.Sprint(c.want))
		}
	}
}

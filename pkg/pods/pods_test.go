package pods

import (
	"context"
	"slices"
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

// The list has the pods that have not ended, a static one by the UID that is in its cgroup's name, and nobody takes it for whole before
// the API server has answered. Each change is told.
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
	ended := make(chan struct{})
	go func() { w.Run(ctx); close(ended) }()
	defer func() { cancel(); <-ended }()
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
	for _, item := range w.store.List() {
		if p := item.(*corev1.Pod); len(p.Labels)+len(p.Spec.Containers) > 0 || len(p.Annotations) > 2 {
			t.Errorf("more is kept of %s than is needed: %+v", p.Name, p)
		}
	}
}

// Package pods knows which pods the API server has put on a node.
package pods

import (
	"cmp"
	"context"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Pod is what is kept of one.
type Pod struct {
	// UID is the one in its cgroup's name, which for a static pod is not that of the object (kubernetes, pkg/kubelet/pod).
	UID, Namespace, Name string
	HostNetwork          bool
	// Workload is what the pod is a part of; without a controller, itself.
	Workload Workload
	// Object is the UID of the object, by which events are about it.
	Object string
	// Ended: it runs no more.
	Ended bool
}

// Workload names a controller, e.g. Deployment web.
type Workload struct{ Kind, Name string }

// Of a static pod the API server has a mirror, and the kubelet writes the pod's own UID there (kubernetes, pkg/kubelet/types:
// ConfigHashAnnotationKey, ConfigMirrorAnnotationKey).
const (
	configHash   = "kubernetes.io/config.hash"
	configMirror = "kubernetes.io/config.mirror"
)

// ownUID is the UID of a static pod, empty for another.
func ownUID(p *corev1.Pod) string {
	if _, mirror := p.Annotations[configMirror]; !mirror {
		return ""
	}
	return p.Annotations[configHash]
}

// Pods that are gone are known for goneFor, and of those at most mostGone: who hears late of what a pod has done has to name it.
const (
	goneFor  = 10 * time.Minute
	mostGone = 5000
)

// Watch keeps the list, by client-go's informer. An API server that does not answer leaves it as it is.
type Watch struct {
	store      cache.Store
	controller cache.Controller

	mu   sync.Mutex
	gone map[string]gone // by UID
}

type gone struct {
	Pod
	at time.Time
}

// New makes a watch of the named node's pods, without a request. changed is called when a pod has come, gone or ended, and must not
// block.
func New(api rest.Interface, node string, changed func()) *Watch {
	return newWatch(cache.NewListWatchFromClient(api, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node)), changed)
}

func newWatch(api cache.ListerWatcher, changed func()) *Watch {
	w := &Watch{gone: map[string]gone{}}
	w.store, w.controller = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: api,
		ObjectType:    &corev1.Pod{},
		Transform:     reduce,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { changed() },
			UpdateFunc: func(any, any) { changed() },
			DeleteFunc: func(object any) { w.bury(object, time.Now()); changed() },
		},
	})
	return w
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) { w.controller.RunWithContext(ctx) }

// List returns the pods that have not ended. known is false until the API server has answered for the first time.
func (w *Watch) List() (pods []Pod, known bool) {
	known = w.controller.HasSynced() // before the list is read: else it might be half of one
	for _, p := range w.stored() {
		if !p.Ended {
			pods = append(pods, p)
		}
	}
	return pods, known
}

// Known returns the same pods, and those that have ended not long ago.
func (w *Watch) Known() (pods []Pod, known bool) {
	known = w.controller.HasSynced()
	pods = w.stored()
	w.mu.Lock()
	defer w.mu.Unlock()
	for uid, p := range w.gone {
		if time.Since(p.at) > goneFor {
			delete(w.gone, uid)
			continue
		}
		pods = append(pods, p.Pod)
	}
	return pods, known
}

func (w *Watch) stored() (pods []Pod) {
	for _, item := range w.store.List() {
		if p, ok := item.(*corev1.Pod); ok {
			pods = append(pods, podOf(p))
		}
	}
	return pods
}

func podOf(p *corev1.Pod) Pod {
	return Pod{
		UID: cmp.Or(ownUID(p), string(p.UID)), Namespace: p.Namespace, Name: p.Name, HostNetwork: p.Spec.HostNetwork,
		Workload: workloadOf(p), Object: string(p.UID), Ended: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
	}
}

// bury notes a pod that the API server has no more.
func (w *Watch) bury(object any, now time.Time) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok { // it went while nobody watched
		object = unknown.Obj
	}
	p, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.gone) >= mostGone {
		clear(w.gone)
	}
	g := gone{podOf(p), now}
	g.Ended = true
	w.gone[g.UID] = g
}

// reduce leaves of a pod what List needs: a node has hundreds.
func reduce(object any) (any, error) {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	small := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion, OwnerReferences: controllerOf(p),
		},
		Spec:   corev1.PodSpec{HostNetwork: p.Spec.HostNetwork},
		Status: corev1.PodStatus{Phase: p.Status.Phase},
	}
	if hash := p.Labels[templateHash]; hash != "" {
		small.Labels = map[string]string{templateHash: hash}
	}
	if uid := ownUID(p); uid != "" {
		small.Annotations = map[string]string{configHash: uid, configMirror: uid}
	}
	return small, nil
}

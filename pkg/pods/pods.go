// Package pods knows which pods the API server has assigned to a node.
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

// Pod is what is kept of a pod.
type Pod struct {
	// UID is the one in its cgroup's name, which for a static pod is not the object's UID (kubernetes, pkg/kubelet/pod).
	UID, Namespace, Name string
	HostNetwork          bool
	// Workload is what the pod belongs to; without a controller, the pod itself.
	Workload Workload
	// Object is the UID of the API object, which events refer to.
	Object string
	// Ended: the pod has finished running.
	Ended bool
}

// Workload names a controller, e.g. Deployment web.
type Workload struct{ Kind, Name string }

// For a static pod the API server has a mirror pod, in which the kubelet records the pod's own UID (kubernetes,
// pkg/kubelet/types: ConfigHashAnnotationKey, ConfigMirrorAnnotationKey).
const (
	configHash   = "kubernetes.io/config.hash"
	configMirror = "kubernetes.io/config.mirror"
)

// ownUID returns the UID of a static pod, empty for any other.
func ownUID(p *corev1.Pod) string {
	if _, mirror := p.Annotations[configMirror]; !mirror {
		return ""
	}
	return p.Annotations[configHash]
}

// Deleted pods stay known for goneFor, mostGone of them at most: a report of what a pod has done may arrive late, and still has
// to name it.
const (
	goneFor  = 10 * time.Minute
	mostGone = 5000
)

// Watch keeps the list with client-go's informer. While the API server does not answer, the list stays as it is.
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

// New makes a watch of the named node's pods, without a request. changed is called when a pod has been added, deleted or ended,
// and must not block.
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
	known = w.controller.HasSynced() // before reading the list, which might otherwise be incomplete
	for _, p := range w.stored() {
		if !p.Ended {
			pods = append(pods, p)
		}
	}
	return pods, known
}

// Known returns these pods and those that ended recently.
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

// bury remembers a deleted pod.
func (w *Watch) bury(object any, now time.Time) {
	if unknown, ok := object.(cache.DeletedFinalStateUnknown); ok { // it was deleted while the watch was broken
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

// reduce keeps only what List needs of a pod: a node has hundreds.
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

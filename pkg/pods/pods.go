// Package pods knows which pods the API server has put on a node.
package pods

import (
	"cmp"
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Pod is what is kept of one that has not ended.
type Pod struct {
	// UID is the one in its cgroup's name, which for a static pod is not that of the object (kubernetes, pkg/kubelet/pod).
	UID, Namespace, Name string
	HostNetwork          bool
}

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

// Watch keeps the list, by client-go's informer. An API server that does not answer leaves it as it is.
type Watch struct {
	store      cache.Store
	controller cache.Controller
}

// New makes a watch of the named node's pods, without a request. changed is called when a pod has come, gone or ended, and must not
// block.
func New(api rest.Interface, node string, changed func()) *Watch {
	return newWatch(cache.NewListWatchFromClient(api, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", node)), changed)
}

func newWatch(api cache.ListerWatcher, changed func()) *Watch {
	w := &Watch{}
	w.store, w.controller = cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: api,
		ObjectType:    &corev1.Pod{},
		Transform:     reduce,
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc:    func(any) { changed() },
			UpdateFunc: func(any, any) { changed() },
			DeleteFunc: func(any) { changed() },
		},
	})
	return w
}

// Run watches until ctx ends.
func (w *Watch) Run(ctx context.Context) { w.controller.RunWithContext(ctx) }

// List returns the pods that have not ended. known is false until the API server has answered for the first time.
func (w *Watch) List() (pods []Pod, known bool) {
	known = w.controller.HasSynced() // before the list is read: else it might be half of one
	for _, item := range w.store.List() {
		p, ok := item.(*corev1.Pod)
		if !ok || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed {
			continue
		}
		pods = append(pods, Pod{cmp.Or(ownUID(p), string(p.UID)), p.Namespace, p.Name, p.Spec.HostNetwork})
	}
	return pods, known
}

// reduce leaves of a pod what List needs: a node has hundreds.
func reduce(object any) (any, error) {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return object, nil
	}
	small := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion},
		Spec:       corev1.PodSpec{HostNetwork: p.Spec.HostNetwork},
		Status:     corev1.PodStatus{Phase: p.Status.Phase},
	}
	if uid := ownUID(p); uid != "" {
		small.Annotations = map[string]string{configHash: uid, configMirror: uid}
	}
	return small, nil
}

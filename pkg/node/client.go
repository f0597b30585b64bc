// The client of the Kubernetes API.

package node

import (
	"context"
	"net/http"
	"os"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// requestTimeout bounds one request. It is short because a connection opened before kube-proxy knew the API server's Service
// hangs forever, and on a new node pods are waiting.
const requestTimeout = 5 * time.Second

// InCluster reports whether the program runs in a pod, judging by what the kubelet sets in every container.
func InCluster() bool {
	return os.Getenv("KUBERNETES_SERVICE_HOST") != "" && os.Getenv("KUBERNETES_SERVICE_PORT") != ""
}

// LoadConfig reads how to reach the API server: from the named kubeconfig file or, if the name is empty, from the pod's service
// account. It makes no request.
func LoadConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// The operations by which requests are counted.
const (
	OpGetNode     = "get_node"
	OpPatchNode   = "patch_node"
	OpPatchStatus = "patch_status"
	OpRecordEvent = "record_event"
	OpListPods    = "list_pods"
	OpWatchPods   = "watch_pods"
)

// Operations lists every operation.
var Operations = []string{OpGetNode, OpPatchNode, OpPatchStatus, OpRecordEvent, OpListPods, OpWatchPods}

// API makes a client for core/v1, without a request. Every later request is reported to count.
//
// It is for core/v1 only: a Clientset contains every API there is, and would use memory for that on every node.
func API(c *rest.Config, version string, count func(operation string, ok bool)) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	c = rest.CopyConfig(c)
	c.APIPath, c.GroupVersion = "/api", &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	c.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	c.ContentType = "application/vnd.kubernetes.protobuf"
	c.UserAgent = component + "/" + version
	c.Wrap(func(next http.RoundTripper) http.RoundTripper { return counter{next, count} })
	return rest.RESTClientFor(c)
}

// Connect makes what Reporter and Events need for the named node. Events are sent until ctx ends.
func Connect(ctx context.Context, api *rest.RESTClient, name string) (Client, *Events) {
	return ownNode{api, name}, newEvents(ctx, eventSink{ctx, api}, name)
}

// ownNode is the Client of one node.
type ownNode struct {
	api  *rest.RESTClient
	name string
}

// Get implements Client.
func (n ownNode) Get(ctx context.Context) (*corev1.Node, error) {
	return result(ctx, &corev1.Node{}, n.api.Get().Resource("nodes").Name(n.name))
}

// Patch implements Client.
func (n ownNode) Patch(ctx context.Context, kind types.PatchType, patch []byte, subresources ...string) (*corev1.Node, error) {
	return result(ctx, &corev1.Node{},
		n.api.Patch(kind).Resource("nodes").Name(n.name).SubResource(subresources...).Param("fieldManager", component).Body(patch))
}

// eventSink is where the recorder's events go.
type eventSink struct {
	ctx context.Context
	api *rest.RESTClient
}

// Create implements record.EventSink.
func (s eventSink) Create(e *corev1.Event) (*corev1.Event, error) {
	return result(s.ctx, &corev1.Event{}, s.api.Post().Namespace(e.Namespace).Resource("events").Body(e))
}

// Update implements record.EventSink. It is never called.
func (s eventSink) Update(e *corev1.Event) (*corev1.Event, error) {
	return result(s.ctx, &corev1.Event{}, s.api.Put().Namespace(e.Namespace).Resource("events").Name(e.Name).Body(e))
}

// Patch implements record.EventSink.
func (s eventSink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return result(s.ctx, &corev1.Event{},
		s.api.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).Body(patch))
}

// result sends a request once and reads the answer into an empty object. Retrying is up to the caller.
func result[T runtime.Object](ctx context.Context, into T, r *rest.Request) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return into, r.MaxRetries(0).Do(ctx).Into(into)
}

// counter counts every request, including retries by the library.
type counter struct {
	next  http.RoundTripper
	count func(operation string, ok bool)
}

// RoundTrip implements http.RoundTripper.
func (c counter) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := c.next.RoundTrip(r)
	c.count(operationOf(r), err == nil && answer.StatusCode < 300)
	return answer, err
}

func operationOf(r *http.Request) string {
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/v1/pods") && r.URL.Query().Get("watch") != "":
		return OpWatchPods
	case strings.HasSuffix(path, "/v1/pods"):
		return OpListPods
	case strings.Contains(path, "/v1/namespaces/"):
		return OpRecordEvent
	case r.Method == http.MethodGet:
		return OpGetNode
	case strings.HasSuffix(path, "/status"):
		return OpPatchStatus
	}
	return OpPatchNode
}

package agent

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"

	"github.com/imds-guard/imds-guard/internal/testapi"
	"github.com/imds-guard/imds-guard/internal/testnode"
)

// api is an API server that knows the pods of a node, and can be stopped. It stands in for the real one, which the tests on
// Kubernetes have, where pods have to come and go a hundred times.
type api struct {
	*http.Server
	kubeconfig string
	listen     func()
	received   testnode.Log // all requests, with their bodies

	mu       sync.Mutex
	pods     map[string]*corev1.Pod
	version  int
	watching map[chan metav1.WatchEvent]bool
	events   []corev1.Event // about pods
}

func newAPI(t *testing.T, n *node) *api {
	t.Helper()
	s := &api{pods: map[string]*corev1.Pod{}, version: 1, watching: map[chan metav1.WatchEvent]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/pods", s.serve)
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/events", s.event)
	mux.HandleFunc("/", testapi.Node)
	s.listen = func() {
		t.Helper()
		var l net.Listener
		eventually(t, "the API server listens", func() (ok bool) {
			var err error
			l, err = n.Host().Listen("tcp", testapi.Address)
			return err == nil
		})
		server := &http.Server{Handler: s.keep(mux)}
		s.mu.Lock()
		s.Server = server
		s.mu.Unlock()
		go server.Serve(l)
	}
	t.Cleanup(s.stop)
	var err error
	if s.kubeconfig, err = testapi.WriteKubeconfig(t.TempDir()); err != nil {
		t.Fatal(err)
	}
	return s
}

// keep writes down what is asked before it is answered.
func (s *api) keep(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(&s.received, "%s %s\n%s\n", r.Method, r.URL, body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		next.ServeHTTP(w, r)
	})
}

// stop ends it, with all connections.
func (s *api) stop() {
	s.mu.Lock()
	server := s.Server
	s.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

func (s *api) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	q := r.URL.Query()
	switch {
	case q.Get("fieldSelector") != "spec.nodeName=n":
		http.Error(w, "only the pods of the node are anybody's business", http.StatusForbidden)
	case q.Get("sendInitialEvents") != "":
		testapi.RefuseStreaming(w)
	case q.Get("watch") == "":
		s.mu.Lock()
		defer s.mu.Unlock()
		list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: fmt.Sprint(s.version)}}
		for _, p := range s.pods {
			list.Items = append(list.Items, *p)
		}
		_ = json.NewEncoder(w).Encode(list)
	default:
		events := make(chan metav1.WatchEvent, 1000)
		s.mu.Lock()
		s.watching[events] = true
		for _, p := range s.pods { // what came since the list may come twice
			events <- event("ADDED", p)
		}
		s.mu.Unlock()
		w.WriteHeader(http.StatusOK)
		for {
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				s.mu.Lock()
				delete(s.watching, events)
				s.mu.Unlock()
				return
			case e := <-events:
				_ = json.NewEncoder(w).Encode(e)
			}
		}
	}
}

func event(kind string, p *corev1.Pod) metav1.WatchEvent {
	e := metav1.WatchEvent{Type: kind}
	e.Object.Raw, _ = json.Marshal(p)
	return e
}

// event takes an event, and answers with it.
func (s *api) event(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var e corev1.Event
	if err == nil {
		_, _, err = scheme.Codecs.UniversalDeserializer().Decode(body, nil, &e)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.InvolvedObject.Kind == "Pod" {
		s.events = append(s.events, e)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusCreated)
	_ = json.NewEncoder(w).Encode(e)
}

// told returns the reasons and messages of events about a pod.
func (s *api) told(uid string) (events []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if string(e.InvolvedObject.UID) == uid && e.Namespace == e.InvolvedObject.Namespace {
			events = append(events, e.Reason+" "+e.Message)
		}
	}
	return events
}

// add puts a pod on the node, in the node's network.
func (s *api) add(namespace, name, uid string) {
	s.put(corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)},
		Spec:       corev1.PodSpec{HostNetwork: true},
	})
}

// put puts a pod on the node.
func (s *api) put(pod corev1.Pod) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	p := &pod
	p.TypeMeta, p.ResourceVersion, p.Spec.NodeName = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}, fmt.Sprint(s.version), "n"
	s.pods[string(p.UID)] = p
	for w := range s.watching {
		w <- event("ADDED", p)
	}
}

func (s *api) remove(uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	p := s.pods[uid]
	p.ResourceVersion = fmt.Sprint(s.version)
	delete(s.pods, uid)
	for w := range s.watching {
		w <- event("DELETED", p)
	}
}

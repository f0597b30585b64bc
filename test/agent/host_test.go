package agent

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// api is an API server that knows the pods of a node, and can be stopped. It stands in for the real one, which the tests on
// Kubernetes have, where pods have to come and go a hundred times.
type api struct {
	*http.Server
	kubeconfig string
	listen     func()

	mu       sync.Mutex
	pods     map[string]*corev1.Pod
	version  int
	watching map[chan metav1.WatchEvent]bool
}

func newAPI(t *testing.T, n *node) *api {
	t.Helper()
	s := &api{pods: map[string]*corev1.Pod{}, version: 1, watching: map[chan metav1.WatchEvent]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/pods", s.serve)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write([]byte(`{"kind":"Node","apiVersion":"v1","metadata":{"name":"n"}}`))
	})
	address := "127.0.0.1:6443"
	s.listen = func() {
		t.Helper()
		var l net.Listener
		eventually(t, "the API server listens", func() (ok bool) {
			var err error
			l, err = n.Host().Listen("tcp", address)
			return err == nil
		})
		server := &http.Server{Handler: mux}
		s.mu.Lock()
		s.Server = server
		s.mu.Unlock()
		go server.Serve(l)
	}
	t.Cleanup(s.stop)
	s.kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
	err := os.WriteFile(s.kubeconfig, []byte("clusters: [{name: c, cluster: {server: http://"+address+"}}]\n"+
		"contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	return s
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
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
			Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity})
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

// add puts a pod on the node, in the node's network.
func (s *api) add(namespace, name, uid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	p := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid), ResourceVersion: fmt.Sprint(s.version)},
		Spec:       corev1.PodSpec{NodeName: "n", HostNetwork: true},
	}
	s.pods[uid] = p
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

// podUID makes up a UID.
func podUID(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i) }

// podCgroup is the cgroup of a container of a burstable pod, by the systemd driver.
func podCgroup(uid string) string {
	return "burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/container"
}

// Pods in the node's network come and go. Those of the namespaces that are let through are served, others are refused and named; and
// so they stay while the API server is away, and when the agent has been killed.
func TestHostNetworkPods(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	s := newAPI(t, n)
	calls := func(uid string) string {
		t.Helper()
		results, err := n.SocketCallsBy(podCgroup(uid), n.Host(), "tcp 169.254.169.254:80", "udp [fd00:ec2::254]:80")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(slices.Compact(results), ",")
	}
	calls(podUID(0))
	s.add("default", "old", podUID(0))
	flags := append(extra, "--kubernetes", "on", "--node-name", "n", "--kubeconfig", s.kubeconfig, "--host-network-pods", "block", "--resync-period", "300ms")
	a := n.startReady(flags...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if got := calls(podUID(0)); got != "sent" {
		t.Errorf("before the API server has answered, a pod in the node's network is served with %s", got)
	}
	code, stdout, _ := n.guard(append([]string{"check", "--host-network-pods", "block"}, extra...)...)
	if code != 0 || !strings.Contains(stdout, "which of them are to be is not known yet") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	s.listen()
	eventually(t, "then it is refused", func() bool { return calls(podUID(0)) == "EPERM" })
	eventually(t, "and named", func() bool { return a.log.Count("is refused", "namespace=default", "pod=old", "uid="+podUID(0)) == 1 })

	for i := 1; i <= 100; i++ {
		uid := podUID(i)
		if namespace := []string{"kube-system", "default"}[i%2]; namespace == "default" {
			s.add(namespace, fmt.Sprint("pod", i), uid)
			if got := calls(uid); got != "EPERM" {
				t.Errorf("pod %d is served with %s", i, got)
			}
		} else if i%4 == 0 { // the API server is quicker
			s.add(namespace, fmt.Sprint("pod", i), uid)
			eventually(t, "a pod that is let through is served", func() bool { return calls(uid) == "sent" })
		} else { // the kubelet is quicker
			calls(uid)
			s.add(namespace, fmt.Sprint("pod", i), uid)
			eventually(t, "a pod that is let through is served", func() bool { return calls(uid) == "sent" })
		}
		if i != 50 && i != 51 {
			s.remove(uid)
			if i%20 == 0 {
				eventually(t, "it is let through no more", func() bool { return calls(uid) == "EPERM" })
			}
		}
	}
	allowed, refused := podUID(50), podUID(51)
	eventually(t, "one that has gone is let through no more", func() bool { return calls(podUID(98)) == "EPERM" })

	must := func(when string) {
		t.Helper()
		if got := calls(allowed) + " " + calls(refused); got != "sent EPERM" {
			t.Errorf("%s, a pod that is let through and another are served with %s", when, got)
		}
	}
	s.stop()
	must("without the API server")
	n.sh("sleep 1")
	must("after three resync periods")
	a.kill()
	must("without an agent")
	a = n.startReady(flags...)
	n.sh("sleep 1")
	must("with an agent that has not reached the API server")
	s.listen()
	late := podUID(200)
	s.add("kube-system", "late", late)
	eventually(t, "a new one is let through", func() bool { return calls(late) == "sent" })
	a.kill()

	n.startReady(append(flags, "--host-network-pods", "audit")...)
	eventually(t, "with audit all are served", func() bool { return calls(refused) == "sent" })
}

// Without the API nobody can tell one from another.
func TestHostNetworkPodsAlone(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	audited := n.startReady(append(extra, "--host-network-pods", "audit", "--resync-period", "200ms")...)
	eventually(t, "who would be refused is named", func() bool {
		return allAre(n.calls(n.Host()), "sent") && audited.log.Count("with block it would be refused", `uid=""`) == 1
	})
	audited.kill()
	n.startReady(append(extra, "--host-network-pods", "block")...)
	eventually(t, "all are refused", func() bool { return allAre(n.calls(n.Host()), "EPERM") })
	// What is below no pods' cgroup is the node's own.
	conn, err := n.Host().Dial(t.Context(), "tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatalf("the node itself: %v", err)
	}
	conn.Close()
}

// A stand-in for an API server with agents behind it: it lists pods and nodes, and serves exec by WebSocket or SPDY.

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	protocol "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// agentFunc is what an agent does when it is asked. It returns the exit code. The channel is closed when the test ends.
type agentFunc func(stdout, stderr io.Writer, end <-chan struct{}) int

// standIn is the server. Its fields are set before the first request.
type standIn struct {
	t    *testing.T
	pods []corev1.Pod
	// nodes are the labels of each; nil if listing them is forbidden.
	nodes map[string]map[string]string
	// agents are by pod. One that is not there is forbidden.
	agents map[string]agentFunc
	// mute pods don't even answer the handshake.
	mute map[string]bool
	// selector is what pods have to be asked for by, if not by agentLabel.
	selector string
	// createOnly: the user may create pods/exec, and not get it, which a WebSocket begins with.
	createOnly bool
	// old: it knows SPDY alone.
	old bool
	// asked gets the name of each pod that is executed in, if it isn't nil.
	asked chan string
	end   chan struct{}
}

// start serves until the test ends, and returns the flags by which the plugin finds the server.
func (s *standIn) start(t *testing.T) []string {
	s.t, s.end = t, make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/nodes", s.listNodes)
	mux.HandleFunc("GET /api/v1/nodes/{name}", s.getNode)
	mux.HandleFunc("GET /api/v1/namespaces/imds-guard/pods", s.listPods)
	mux.HandleFunc("/api/v1/namespaces/imds-guard/pods/{pod}/exec", s.exec)
	mux.HandleFunc("GET /api/v1/namespaces/empty/pods", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, &corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}})
	})
	server := httptest.NewUnstartedServer(mux)
	// The library would log each client that goes away.
	server.Config.BaseContext = func(net.Listener) context.Context { return klog.NewContext(context.Background(), klog.Logger{}) }
	server.Start()
	t.Cleanup(func() {
		close(s.end)
		server.Close()
	})
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters: [{name: it, cluster: {server: %q}}]\n"+
		"contexts: [{name: it, context: {cluster: it, namespace: elsewhere}}]\n", server.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"--kubeconfig", kubeconfig}
}

// addNode adds a node with an agent that runs.
func (s *standIn) addNode(node string, agent agentFunc) {
	pod := "imds-guard-" + node
	s.pods = append(s.pods, corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "imds-guard"},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: agentContainer}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{
			{Name: agentContainer, State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}}},
	})
	if s.nodes == nil {
		s.nodes = map[string]map[string]string{}
	}
	s.nodes[node] = map[string]string{corev1.LabelOSStable: "linux"}
	if s.agents == nil {
		s.agents, s.mute = map[string]agentFunc{}, map[string]bool{}
	}
	if agent != nil {
		s.agents[pod] = agent
	}
}

func (s *standIn) listPods(w http.ResponseWriter, r *http.Request) {
	if selector := r.URL.Query().Get("labelSelector"); selector != cmp.Or(s.selector, agentLabel) {
		s.t.Errorf("pods are listed by %q", selector)
	}
	pods := s.pods
	if node, ok := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "spec.nodeName="); ok {
		pods = slices.DeleteFunc(slices.Clone(pods), func(p corev1.Pod) bool { return p.Spec.NodeName != node })
	}
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}}
	list.Items, list.Continue = page(r, pods)
	reply(w, http.StatusOK, &list)
}

func (s *standIn) listNodes(w http.ResponseWriter, r *http.Request) {
	if s.nodes == nil {
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "nodes is forbidden: not for you")
		return
	}
	if !strings.Contains(r.Header.Get("Accept"), "PartialObjectMetadataList") {
		s.t.Errorf("whole nodes are listed: %q", r.Header.Get("Accept"))
	}
	var nodes []metav1.PartialObjectMetadata
	for name, labels := range s.nodes {
		nodes = append(nodes, metadataOf(name, labels))
	}
	slices.SortFunc(nodes, func(a, b metav1.PartialObjectMetadata) int { return strings.Compare(a.Name, b.Name) })
	list := metav1.PartialObjectMetadataList{
		TypeMeta: metav1.TypeMeta{Kind: "PartialObjectMetadataList", APIVersion: "meta.k8s.io/v1"},
	}
	list.Items, list.Continue = page(r, nodes)
	reply(w, http.StatusOK, &list)
}

func (s *standIn) getNode(w http.ResponseWriter, r *http.Request) {
	labels, ok := s.nodes[r.PathValue("name")]
	switch {
	case s.nodes == nil:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "nodes is forbidden: not for you")
	case !ok:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "nodes not found")
	default:
		n := metadataOf(r.PathValue("name"), labels)
		reply(w, http.StatusOK, &n)
	}
}

func metadataOf(name string, labels map[string]string) metav1.PartialObjectMetadata {
	return metav1.PartialObjectMetadata{
		TypeMeta:   metav1.TypeMeta{Kind: "PartialObjectMetadata", APIVersion: "meta.k8s.io/v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
	}
}

// page returns one page of a list requested in pages.
func page[T any](r *http.Request, all []T) (items []T, next string) {
	from, _ := strconv.Atoi(r.URL.Query().Get("continue"))
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	if limit == 0 || from+limit >= len(all) {
		return all[from:], ""
	}
	return all[from : from+limit], strconv.Itoa(from + limit)
}

func (s *standIn) exec(w http.ResponseWriter, r *http.Request) {
	pod, query := r.PathValue("pod"), r.URL.Query()
	if s.asked != nil {
		s.asked <- pod
	}
	if !slices.Equal(query["command"], reportCommand) || query.Get("container") != agentContainer {
		s.t.Errorf("executed %q in %q", query["command"], query.Get("container"))
	}
	agent, ok := s.agents[pod]
	switch {
	case s.mute[pod]:
		select {
		case <-r.Context().Done():
		case <-s.end:
		}
	case !ok:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "pods "+pod+" is forbidden: not for you")
	case wsstream.IsWebSocketRequest(r) && s.createOnly:
		refuse(w, http.StatusForbidden, metav1.StatusReasonForbidden, "pods "+pod+" is forbidden: you may not get pods/exec")
	case wsstream.IsWebSocketRequest(r) && !s.old:
		s.execWebSocket(w, r, agent)
	case wsstream.IsWebSocketRequest(r):
		http.Error(w, "what is a WebSocket?", http.StatusBadRequest)
	default:
		s.execSPDY(w, r, agent)
	}
}

func (s *standIn) execWebSocket(w http.ResponseWriter, r *http.Request, agent agentFunc) {
	const read, write = wsstream.ReadChannel, wsstream.WriteChannel
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		protocol.StreamProtocolV5Name: {Binary: true, Channels: []wsstream.ChannelType{read, write, write, write, read}},
	})
	_, streams, err := conn.Open(w, r)
	if err != nil {
		s.t.Errorf("opening a WebSocket: %v", err)
		return
	}
	defer conn.Close()
	code := agent(streams[protocol.StreamStdOut], streams[protocol.StreamStdErr], s.end)
	_, _ = streams[protocol.StreamErr].Write(exitStatus(code)) // the client may be gone
}

func (s *standIn) execSPDY(w http.ResponseWriter, r *http.Request, agent agentFunc) {
	if _, err := httpstream.Handshake(r, w, []string{protocol.StreamProtocolV4Name}); err != nil {
		s.t.Errorf("agreeing on a protocol: %v", err)
		return
	}
	opened := make(chan httpstream.Stream, 3)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, _ <-chan struct{}) error {
		opened <- stream
		return nil
	})
	if conn == nil {
		s.t.Error("opening a SPDY connection")
		return
	}
	defer conn.Close()
	streams := map[string]httpstream.Stream{}
	for range 3 {
		stream := <-opened
		streams[stream.Headers().Get(corev1.StreamType)] = stream
	}
	code := agent(streams[corev1.StreamTypeStdout], streams[corev1.StreamTypeStderr], s.end)
	_, _ = streams[corev1.StreamTypeError].Write(exitStatus(code))
	for _, stream := range streams {
		_ = stream.Close()
	}
	<-conn.CloseChan()
}

// exitStatus is how a container runtime reports a command's exit code.
func exitStatus(code int) []byte {
	status := metav1.Status{Status: metav1.StatusSuccess}
	if code != 0 {
		status = metav1.Status{
			Status: metav1.StatusFailure, Reason: protocol.NonZeroExitCodeReason, Message: "command terminated with non-zero exit code",
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: protocol.ExitCodeCauseType, Message: strconv.Itoa(code)}}},
		}
	}
	text, err := json.Marshal(status)
	if err != nil {
		panic(err) // it is made of strings
	}
	return text
}

func refuse(w http.ResponseWriter, code int32, reason metav1.StatusReason, message string) {
	reply(w, int(code), &metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Code: code, Reason: reason, Message: message,
	})
}

func reply(w http.ResponseWriter, code int, object runtime.Object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // the client may be gone
}

package node

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// wire is the way to an API server that answers as it is told. It takes requests and opens no connection.
type wire struct {
	status   int // 0 is no answer at all
	hang     bool
	requests []*http.Request
	bodies   [][]byte
	counted  []string // the operations that went well, and the others with a minus sign
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		body, _ = io.ReadAll(r.Body)
	}
	w.requests, w.bodies = append(w.requests, r), append(w.bodies, body)
	switch {
	case w.hang:
		<-r.Context().Done()
		return nil, r.Context().Err()
	case w.status == 0:
		return nil, errors.New("no route to host")
	}
	header := http.Header{"Content-Type": {"application/json"}, "Retry-After": {"1"}}
	answer := io.NopCloser(strings.NewReader(`{"kind":"Node","apiVersion":"v1","metadata":{"name":"answered"}}`))
	return &http.Response{StatusCode: w.status, Header: header, Body: answer, Request: r}, nil
}

func (w *wire) count(operation string, ok bool) {
	if !ok {
		operation = "-" + operation
	}
	w.counted = append(w.counted, operation)
}

func (w *wire) connect(t *testing.T, ctx context.Context) (Client, *Events) {
	t.Helper()
	c := &rest.Config{Host: "https://api", Transport: w}
	api, err := API(c, "v1", w.count)
	if err != nil {
		t.Fatal(err)
	}
	if c.UserAgent != "" || c.APIPath != "" || c.WrapTransport != nil {
		t.Errorf("the caller's configuration was changed: %+v", c)
	}
	return Connect(ctx, api, "n")
}

// What goes over the wire, how it is counted, and that nothing is tried a second time.
func TestRequests(t *testing.T) {
	get := func(c Client) (*corev1.Node, error) { return c.Get(context.Background()) }
	patch := func(c Client) (*corev1.Node, error) {
		return c.Patch(context.Background(), types.JSONPatchType, []byte("[]"))
	}
	status := func(c Client) (*corev1.Node, error) {
		return c.Patch(context.Background(), types.StrategicMergePatchType, []byte("{}"), "status")
	}
	const manager = "?fieldManager=imds-guard"
	for _, c := range []struct {
		name    string
		call    func(Client) (*corev1.Node, error)
		status  int
		request string
		content string
		counted string
	}{
		{"get", get, 200, "GET https://api/api/v1/nodes/n", "", OpGetNode},
		{"patch", patch, 200, "PATCH https://api/api/v1/nodes/n" + manager, "application/json-patch+json", OpPatchNode},
		{"patch of the status", status, 200, "PATCH https://api/api/v1/nodes/n/status" + manager, "application/strategic-merge-patch+json", OpPatchStatus},
		{"created", patch, 201, "PATCH https://api/api/v1/nodes/n" + manager, "application/json-patch+json", OpPatchNode},
		{"redirected", get, 300, "GET https://api/api/v1/nodes/n", "", "-" + OpGetNode},
		{"not found", get, 404, "GET https://api/api/v1/nodes/n", "", "-" + OpGetNode},
		{"too many", status, 429, "PATCH https://api/api/v1/nodes/n/status" + manager, "application/strategic-merge-patch+json", "-" + OpPatchStatus},
		{"server error", get, 503, "GET https://api/api/v1/nodes/n", "", "-" + OpGetNode},
		{"no answer", get, 0, "GET https://api/api/v1/nodes/n", "", "-" + OpGetNode},
	} {
		w := &wire{status: c.status}
		client, _ := w.connect(t, t.Context())
		node, err := c.call(client)
		if ok := c.counted[0] != '-'; (err == nil) != ok || ok && node.Name != "answered" {
			t.Errorf("%s: %v, %v", c.name, node, err)
		}
		if len(w.requests) != 1 || strings.Join(w.counted, " ") != c.counted {
			t.Errorf("%s: %d requests, counted as %q", c.name, len(w.requests), w.counted)
			continue
		}
		r := w.requests[0]
		if got := r.Method + " " + r.URL.String(); got != c.request || r.Header.Get("Content-Type") != c.content {
			t.Errorf("%s: %s of %q", c.name, got, r.Header.Get("Content-Type"))
		}
		if r.UserAgent() != "imds-guard/v1" || !strings.HasPrefix(r.Header.Get("Accept"), "application/vnd.kubernetes.protobuf,") {
			t.Errorf("%s: from %q, accepts %q", c.name, r.UserAgent(), r.Header.Get("Accept"))
		}
	}
}

// Each request has a bound of its own.
func TestRequestThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{hang: true}
		client, _ := w.connect(t, t.Context())
		start := time.Now()
		if _, err := client.Get(t.Context()); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != requestTimeout {
			t.Errorf("after %s: %v", time.Since(start), err)
		}
	})
}

// An event is about the Node, in the form in which `kubectl describe node` finds it.
func TestEvents(t *testing.T) {
	id := layer.ID{Name: "iptables", Family: imds.IPv4}
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		reason, message string
		record          func(*Events)
	}{
		{EventRepaired, "iptables ipv4 rules were shadowed and have been repaired", func(e *Events) { e.Repaired(id, rules.Shadowed) }},
		{EventContended, "something keeps undoing the repairs of the iptables ipv4 rules", func(e *Events) { e.Contended(id) }},
		{EventNotCovered, "no rule covers the pod-side interface cali1: its pods can reach the metadata service; do this",
			func(e *Events) { e.NotCovered("cali1", "do this") }},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{status: 201}
			_, events := w.connect(t, t.Context())
			c.record(events)
			synctest.Wait()
			if len(w.requests) != 1 || w.requests[0].URL.Path != "/api/v1/namespaces/default/events" || strings.Join(w.counted, " ") != OpRecordEvent {
				t.Fatalf("%s: %d requests, counted as %q", c.reason, len(w.requests), w.counted)
			}
			object, _, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(w.bodies[0], nil, nil)
			e, ok := object.(*corev1.Event)
			if err != nil || !ok {
				t.Fatalf("%s: %v, %v", c.reason, object, err)
			}
			about := corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: "n", UID: "n"}
			from := corev1.EventSource{Component: "imds-guard", Host: "n"}
			if e.Reason != c.reason || !strings.HasPrefix(e.Message, c.message) || e.Type != "Warning" || e.InvolvedObject != about || e.Source != from {
				t.Errorf("%+v", e)
			}
			if got := w.requests[0].Header.Get("Content-Type"); got != "application/vnd.kubernetes.protobuf" {
				t.Errorf("sent as %q", got)
			}
		})
	}
}

// An event about a pod is in its namespace, says what to do, and takes nothing from another pod's share.
func TestPodEvents(t *testing.T) {
	for _, c := range []struct {
		audited         bool
		reason, message string
	}{
		{false, EventBlocked, "This pod asks for the node's instance metadata service (IMDS) and is refused. Do this."},
		{true, EventAudited, "This pod asks for the node's instance metadata service (IMDS) and would be refused in enforce mode. Do this."},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{status: 201}
			_, events := w.connect(t, t.Context())
			for i := range 2 * eventBurst {
				events.Asked(Pod{"nodes", "p", strconv.Itoa(i)}, c.audited, "Do this.")
				synctest.Wait()
			}
			if len(w.requests) != 2*eventBurst || w.requests[0].URL.Path != "/api/v1/namespaces/nodes/events" || w.counted[0] != OpRecordEvent {
				t.Fatalf("%d requests, counted as %q", len(w.requests), w.counted)
			}
			var e corev1.Event
			scheme := runtime.NewScheme()
			if err := corev1.AddToScheme(scheme); err != nil {
				t.Fatal(err)
			}
			if _, _, err := serializer.NewCodecFactory(scheme).UniversalDeserializer().Decode(w.bodies[0], nil, &e); err != nil {
				t.Fatal(err)
			}
			about := corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: "nodes", Name: "p", UID: "0"}
			if e.Reason != c.reason || e.Message != c.message || e.Type != "Warning" || e.InvolvedObject != about || e.Source.Host != "n" {
				t.Errorf("%+v", e)
			}
		})
	}
}

// A fight causes no flood of events, and hides no event with another reason.
func TestEventsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		id := layer.ID{Name: "iptables", Family: imds.IPv4}
		w := &wire{status: 201}
		_, events := w.connect(t, t.Context())
		sent := func(n int, record func()) int {
			before := len(w.requests)
			for range n {
				record()
				synctest.Wait()
			}
			return len(w.requests) - before
		}
		repaired := func() { events.Repaired(id, layer.Missing) }
		if n := sent(50, repaired); n != eventBurst {
			t.Errorf("%d events at once", n)
		}
		if n := sent(1, func() { events.Contended(id) }); n != 1 {
			t.Error("an event of another reason is held back")
		}
		time.Sleep(time.Duration(1/eventRate)*time.Second - 2*time.Second)
		if n := sent(5, repaired); n != 0 {
			t.Errorf("%d events too early", n)
		}
		time.Sleep(3 * time.Second)
		if n := sent(5, repaired); n != 1 {
			t.Errorf("%d events when one is due", n)
		}
	})
}

func TestOperationOf(t *testing.T) {
	for request, want := range map[string]string{
		"GET /api/v1/nodes/n":                       OpGetNode,
		"PATCH /api/v1/nodes/n":                     OpPatchNode,
		"GET /api/v1/nodes/pods":                    OpGetNode,
		"PATCH /api/v1/nodes/events":                OpPatchNode,
		"POST /api/v1/namespaces/nodes/events":      OpRecordEvent,
		"PATCH /api/v1/nodes/n/status":              OpPatchStatus,
		"POST /api/v1/namespaces/default/events":    OpRecordEvent,
		"PATCH /api/v1/namespaces/default/events/n": OpRecordEvent,
	} {
		method, path, _ := strings.Cut(request, " ")
		r, err := http.NewRequest(method, "https://api"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := operationOf(r); got != want {
			t.Errorf("%s: %s", request, got)
		}
	}
}

// A pod is recognised by both variables that the kubelet sets.
func TestInCluster(t *testing.T) {
	for _, c := range []struct {
		host, port string
		want       bool
	}{{"", "", false}, {"10.0.0.1", "", false}, {"", "443", false}, {"10.0.0.1", "443", true}} {
		t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
		t.Setenv("KUBERNETES_SERVICE_PORT", c.port)
		if got := InCluster(); got != c.want {
			t.Errorf("host %q, port %q: %t", c.host, c.port, got)
		}
	}
}

func TestConnectRefuses(t *testing.T) {
	if _, err := API(&rest.Config{Host: "http://[::1"}, "v1", nil); err == nil {
		t.Error("no error for an address that is none")
	}
}

func TestLoadConfig(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := "clusters: [{name: c, cluster: {server: https://here}}]\ncontexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := LoadConfig(path); err != nil || c.Host != "https://here" {
		t.Errorf("from the file: %+v, %v", c, err)
	}
	if _, err := LoadConfig(""); !errors.Is(err, rest.ErrNotInCluster) {
		t.Errorf("outside a pod: %v", err)
	}
}

package report

import (
	"bytes"
	"encoding/json"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode"

	"sigs.k8s.io/yaml"

	"github.com/imds-guard/imds-guard/pkg/request"
)

func minute(m int) time.Time { return time.Date(2026, 11, 28, 12, m, 0, 0, time.UTC) }

// Each row has the sums of all nodes, in an order that doesn't depend on the nodes'.
func TestMerge(t *testing.T) {
	nodes := []Node{{Node: "a", Workloads: []Workload{
		{
			Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: 1, Blocked: 2, Audited: 3, First: minute(5), Last: minute(6),
			Commands: []string{"curl", "python3"},
			Requests: []Request{
				{request.V2, request.Token, "Boto3/1", 9},
				{request.V2, request.Credentials, "Boto3/1", 2},
			},
		},
		{Namespace: "b", Kind: "Pod", Name: "y", Pods: 1, Blocked: 1},
	}}, {Node: "b", Workloads: []Workload{
		{
			Namespace: "shop", Kind: "Deployment", Name: "cart", HostNetwork: true, Pods: 2, Blocked: 1, First: minute(3), Last: minute(4),
			Commands: []string{"aws", "curl"},
			Requests: []Request{
				{request.V2, request.Credentials, "Boto3/1", 5},
				{request.V1, request.Credentials, "Boto3/1", 8},
				{request.V2, request.Credentials, "", 1},
			},
		},
		{Namespace: "b", Kind: "Pod", Name: "x", Pods: 1, Audited: 1},
		{Namespace: "b", Kind: "Job", Name: "y", Pods: 1, Blocked: 1},
	}}, {Node: "c", Workloads: []Workload{
		{Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: 1}, // with no times
		{Namespace: "a", Kind: "Pod", Name: "y", Pods: 1, Blocked: 1},
	}}}
	want := []Workload{
		{
			Namespace: "shop", Kind: "Deployment", Name: "cart", HostNetwork: true, Pods: 4, Blocked: 3, Audited: 3,
			First: minute(3), Last: minute(6), Commands: []string{"aws", "curl", "python3"},
			Requests: []Request{
				{request.V1, request.Credentials, "Boto3/1", 8},
				{request.V2, request.Credentials, "Boto3/1", 7},
				{request.V2, request.Credentials, "", 1},
				{request.V2, request.Token, "Boto3/1", 9},
			},
		},
		{Namespace: "a", Kind: "Pod", Name: "y", Pods: 1, Blocked: 1},
		{Namespace: "b", Kind: "Job", Name: "y", Pods: 1, Blocked: 1},
		{Namespace: "b", Kind: "Pod", Name: "x", Pods: 1, Audited: 1},
		{Namespace: "b", Kind: "Pod", Name: "y", Pods: 1, Blocked: 1},
	}
	for range 10 {
		if got := Merge(nodes); !reflect.DeepEqual(got, want) {
			t.Fatalf("got  %+v\nwant %+v", got, want)
		}
		rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	}
	if got := nodes[0].Workloads; len(got) > 3 {
		t.Errorf("the nodes were changed: %+v", got)
	}
}

func TestMergeLyingNode(t *testing.T) {
	w := Workload{Name: "x", Blocked: 7, Requests: []Request{{Count: 3}}}
	lie := Workload{Name: "x", Blocked: math.MaxUint64 - 2, Audited: math.MaxUint64, Requests: []Request{{Count: math.MaxUint64}}}
	got := Merge([]Node{{Workloads: []Workload{w}}, {Workloads: []Workload{lie}}})[0]
	if got.Blocked != math.MaxUint64 || got.Requests[0].Count != math.MaxUint64 || got.Attempts() != math.MaxUint64 {
		t.Errorf("got %+v", got)
	}
}

// Every kind of document has its remedy; so has a workload that was not seen asking for any.
func TestAdvice(t *testing.T) {
	if len(remedies) != len(request.Documents) {
		t.Errorf("%d remedies for %d kinds of document", len(remedies), len(request.Documents))
	}
	for i, r := range remedies {
		if importance(r.document) != i {
			t.Errorf("%s: there twice", r.document)
		}
	}
	const role, region, token = "EKS Pod Identity or IRSA", "Set AWS_REGION", "asked for a token"
	for _, c := range []struct {
		name      string
		asked     []string
		change    func(*Workload)
		want, not []string
	}{
		{"credentials", []string{request.Token, request.Credentials}, nil, []string{role}, []string{token, region}},
		{"credentials and region", []string{request.Placement, request.Credentials}, nil, []string{role}, []string{region}},
		{"region", []string{request.Placement, request.Token}, nil,
			[]string{region, "AWS_EC2_METADATA_DISABLED=true"}, []string{role, token}},
		{"identity", []string{request.Identity}, nil, []string{"downward API", "account"}, []string{role, region}},
		{"network", []string{request.Network}, nil, []string{"address", "VPC"}, []string{role, region}},
		{"user data", []string{request.UserData}, nil, []string{"a Secret or a ConfigMap", "should not read"}, []string{role}},
		{"several", []string{request.Network, request.UserData, request.Credentials}, nil, []string{role, "Secret", "VPC"}, []string{token}},
		{"other", []string{request.Other}, nil, []string{"its documentation"}, []string{role}},
		{"a kind of a later version", []string{"tags"}, nil, []string{"its documentation"}, []string{role}},
		{"token", []string{request.Token}, nil, []string{token, "role", "AWS_REGION"}, []string{"--mode=audit"}},
		{"nothing, blocked", nil, func(w *Workload) { w.Blocked = 1 },
			[]string{"--mode=audit", "role", "AWS_EC2_METADATA_DISABLED=true", "AWS_REGION"}, []string{token}},
		{"nothing, audited", nil, func(w *Workload) { w.Audited = 1 }, []string{"not seen", "AWS_REGION"}, []string{"--mode=audit"}},
		{"hostNetwork", []string{request.Credentials}, func(w *Workload) { w.HostNetwork = true },
			[]string{role, "--host-network-namespaces"}, nil},
		{"not hostNetwork", []string{request.Credentials}, nil, nil, []string{"--host-network-namespaces"}},
	} {
		var w Workload
		for _, document := range c.asked {
			w.Requests = append(w.Requests, Request{Document: document, Count: 1})
		}
		if c.change != nil {
			c.change(&w)
		}
		advice := w.Advice()
		for _, text := range c.want {
			if !strings.Contains(advice, text) {
				t.Errorf("%s: %q lacks %q", c.name, advice, text)
			}
		}
		for _, text := range c.not {
			if strings.Contains(advice, text) {
				t.Errorf("%s: %q has %q", c.name, advice, text)
			}
		}
	}
	several := Workload{Requests: []Request{{Document: request.Network}, {Document: request.Credentials}}}.Advice()
	if strings.Index(several, role) > strings.Index(several, "VPC") {
		t.Errorf("what matters most is not first: %q", several)
	}
}

func text(t *testing.T, nodes ...Node) string {
	t.Helper()
	var b strings.Builder
	if err := WriteText(&b, nodes, Merge(nodes)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestWriteText(t *testing.T) {
	const start = "2026-11-28T12:0"
	w := Workload{
		Namespace: "shop", Kind: "Deployment", Name: "cart", Pods: 2, Audited: 14, Last: minute(6), Commands: []string{"aws"},
		Requests: []Request{
			{request.V1, request.Credentials, "Boto3/1.26.0", 12},
			{request.V2, request.Placement, "", 1},
		},
	}
	unnamed := Workload{Namespace: "monitoring", Name: "6d8a", Pods: 1, Blocked: 3, HostNetwork: true}
	got := text(t, Node{Node: "a", Since: minute(1), Workloads: []Workload{w, unnamed}})
	want := "Counted on 1 node since " + start + `1:00Z.

NAMESPACE   WORKLOAD                        PODS  ATTEMPTS  VERDICT  LAST                  ASKED-FOR
shop        Deployment/cart                 2     14        audited  2026-11-28T12:06:00Z  credentials, region and placement
    credentials, IMDSv1, Boto3/1.26.0, 12 times
    region and placement, IMDSv2, once
    by aws
    ` + w.Advice() + `
monitoring  unknown pod 6d8a (hostNetwork)  1     3         blocked  -                     not seen
    ` + unnamed.Advice() + "\n"
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	for name, c := range map[string]struct {
		nodes []Node
		want  string
	}{
		"no node":     {nil, "No node answered, so nothing is known.\n"},
		"not counted": {[]Node{{}, {}}, "Nothing was counted on 2 nodes.\nNo attempts were counted.\n"},
		"same time": {[]Node{{Since: minute(1)}, {Since: minute(1)}},
			"Counted on 2 nodes since " + start + "1:00Z.\nNo attempts were counted.\n"},
		"other times": {[]Node{{Since: minute(1)}, {Since: minute(3)}, {Since: minute(2)}},
			"Counted on 3 nodes, on all of them since " + start + "3:00Z.\nNo attempts were counted.\n"},
		"incomplete": {[]Node{{Node: "a", Since: minute(1), Incomplete: "why"}, {Node: "b", Since: minute(1)},
			{Node: "c", Since: minute(1), Incomplete: "why"}, {Node: "d", Since: minute(1), Incomplete: "because"}},
			"Counted on 4 nodes since " + start + "1:00Z.\nIncomplete on a, c: why\nIncomplete on d: because\n" +
				"No attempts were counted.\n"},
	} {
		if got := text(t, c.nodes...); got != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, c.want)
		}
	}
	both := Workload{Blocked: 1, Audited: 2}
	if got := text(t, Node{Workloads: []Workload{both}}); !strings.Contains(got, "1 blocked, 2 audited") {
		t.Errorf("got %s", got)
	}
}

// A node that sends very much gets few lines.
func TestWriteTextLimits(t *testing.T) {
	w := Workload{Name: strings.Repeat("ä", 1000)}
	for i := range 1000 {
		w.Commands = append(w.Commands, strings.Repeat("c", i+1))
		w.Requests = append(w.Requests, Request{Document: strings.Repeat("d", i+1), Count: 1})
	}
	got := text(t, Node{Workloads: []Workload{w}})
	if lines := strings.Count(got, "\n"); lines > maxRequests+10 {
		t.Errorf("%d lines", lines)
	}
	if !strings.Contains(got, "    and 980 more\n") {
		t.Error("it is not said that requests were left out")
	}
	if strings.Contains(got, strings.Repeat("ä", maxRunes+1)) {
		t.Error("the name was not cut")
	}
}

func TestWriteStatus(t *testing.T) {
	var b strings.Builder
	err := WriteStatus(&b, []Node{
		{Node: "a", Protected: true, Mode: "enforce", Version: "v1", Condition: "all is well", Layers: []Layer{
			{"ipv4", "iptables", "enforced", ""}, {"ipv6", "iptables", "enforced", ""},
			{"ipv4", "route", "enforced", ""}, {"ipv6", "route", "missing", "gone"},
			{"ipv4", "cgroup", "unsupported", ""},
		}},
		{Node: "node-b", Degraded: true, Mode: "audit", Version: "v0.10", Condition: "nobody knows"},
	})
	want := `NODE    PROTECTED  DEGRADED  MODE     VERSION  LAYERS
a       yes        no        enforce  v1       iptables: enforced; route: enforced (ipv4), missing (ipv6); cgroup: unsupported
node-b  no         yes       audit    v0.10    ` + `
    nobody knows

1 of 2 nodes protected.
`
	if got := b.String(); err != nil || got != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, got, want)
	}
}

// Nothing that comes from a node can control the terminal or start a line of its own.
func TestHostileText(t *testing.T) {
	const evil = "a\x1b[2J\u009b\u202e\x7f\r\n\tb\xff"
	node := Node{
		Node: evil, Version: evil, Mode: evil, Incomplete: evil, Condition: evil, Layers: []Layer{{evil, evil, evil, evil}, {"ipv4", evil, "x", evil}},
		Workloads: []Workload{{
			Namespace: evil, Kind: evil, Name: evil, Audited: 1, Commands: []string{evil},
			Requests: []Request{{evil, evil, evil, 1}},
		}, {Name: evil}},
	}
	var status strings.Builder
	if err := WriteStatus(&status, []Node{node}); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{"report": text(t, node), "status": status.String()} {
		for _, r := range got {
			if r != '\n' && !unicode.IsPrint(r) || r == unicode.ReplacementChar {
				t.Errorf("%s has %U", name, r)
			}
		}
		if lines, want := strings.Count(got, "\n"), map[string]int{"report": 10, "status": 5}[name]; lines != want {
			t.Errorf("%s has %d lines, want %d:\n%s", name, lines, want, got)
		}
	}
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"":             "",
		"Boto3/1.26.0": "Boto3/1.26.0",
		"größe 日本":     "größe 日本",
		"\x1b[2J":      `"\x1b[2J"`,
		"\u009b":       `"\u009b"`,
		"a\nb":         `"a\nb"`,
		`"\x1b"`:       `"\"\\x1b\""`, // no quotation of ours
	} {
		if got := Printable(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// JSON and YAML are read back as what they were, and have no control character in them.
func TestEncode(t *testing.T) {
	node := Node{Node: "\x00\x1b[2J\u009b\u0085\u2028\ufeff\x7f\r\n\t\U000e0001 \"größe\" 日本 😀", Workloads: []Workload{{Blocked: math.MaxUint64}}}
	for name, c := range map[string]struct {
		write func(io.Writer, any) error
		read  func([]byte, any) error
	}{
		"JSON": {WriteJSON, json.Unmarshal},
		"YAML": {WriteYAML, func(text []byte, into any) error { return yaml.Unmarshal(text, into) }},
	} {
		var b bytes.Buffer
		if err := c.write(&b, node); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, r := range b.String() {
			if r != '\n' && unicode.IsControl(r) {
				t.Errorf("%s has %U", name, r)
			}
		}
		var got Node
		if err := c.read(b.Bytes(), &got); err != nil || !reflect.DeepEqual(got, node) {
			t.Errorf("%s: %v, got %+v from %s", name, err, got, b.String())
		}
	}
}

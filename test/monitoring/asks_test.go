// Who asks, as the dashboard shows it: by what the agents count, however they are scraped.
package monitoring

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sigs.k8s.io/yaml"
)

// TestWhoAsks looks back from 32 minutes to 27. Of shop, web has three pods: one that asks on, one that is gone, and one whose
// agent, scraped without the PodMonitor, was replaced at half past. job asks in one burst and never again. db asked before, and its
// agent begins anew. Of the three nodes, a is in audit mode, and c has an agent from before modes.
func TestWhoAsks(t *testing.T) {
	t.Parallel()
	attempts := func(labels, values string) series { return series{"imds_guard_attempts_total{" + labels + "}", values} }
	const (
		a = `node="a", instance="a:1", `
		b = `node="b", instance="b:1", namespace="imds-guard", `
		c = `node="c", instance="c:1", `
	)
	input := []series{
		attempts(a+`namespace="shop", workload="web", pod="web-1", verdict="audited"`, "0+60x40"),
		attempts(a+`namespace="shop", workload="web", pod="web-0", verdict="audited"`, "0+10x29 stale"),
		attempts(a+`namespace="shop", workload="job", pod="job-1", verdict="audited"`, "_x30 3x9"),
		attempts(a+`namespace="unknown", workload="unknown", pod="6f1c", verdict="audited"`, "_x30 2x9"),
		attempts(a+`namespace="other", workload="other", pod="other", verdict="audited"`, "0+1x40"),
		attempts(a+`namespace="other", workload="other", pod="other", verdict="blocked"`, "7x40"),
		attempts(b+`pod="old", exported_namespace="shop", exported_pod="web-2", workload="web", verdict="blocked"`, "0+60x30"),
		attempts(b+`pod="new", exported_namespace="shop", exported_pod="web-2", workload="web", verdict="blocked"`, "_x31 1860+60x9"),
		attempts(b+`pod="old", exported_namespace="other", exported_pod="other", workload="other", verdict="audited"`, "0x30"),
		attempts(b+`pod="new", exported_namespace="other", exported_pod="other", workload="other", verdict="audited"`, "_x31 4x9"),
		attempts(c+`namespace="shop", workload="db", pod="db-0", verdict="blocked"`, "900x27 0x12"),
		{`imds_guard_mode{node="a", instance="a:1", mode="audit"}`, "1x40"},
		{`imds_guard_mode{node="a", instance="a:1", mode="enforce"}`, "0x40"},
		{`imds_guard_mode{node="b", instance="b:1", mode="audit"}`, "0x40"},
		{`imds_guard_mode{node="b", instance="b:1", mode="enforce"}`, "1x40"},
	}
	testPanels(t, input, "32m", map[string][]string{
		"Workloads that ask (20 with most) 33A": {
			`{namespace="shop", workload="web", verdict="audited"} 320`,
			`{namespace="shop", workload="web", verdict="blocked"} 300`,
			`{namespace="shop", workload="job", verdict="audited"} 3`,
			`{namespace="other", workload="other", verdict="audited"} 9`,
			`{namespace="unknown", workload="unknown", verdict="audited"} 2`,
		},
		"Attempts by namespace (10 with most) 34A": {
			`{namespace="shop", verdict="audited"} 1.083`,
			`{namespace="shop", verdict="blocked"} 1`,
			`{namespace="other", verdict="audited"} 0.017`,
		},
		"Nodes in audit mode 35A": {`{} 1`},
	})
}

// What an agent says of pods that ask: one with a name, one without, and all others.
const exposition = `# TYPE imds_guard_attempts_total counter
imds_guard_attempts_total{namespace="shop",workload="web",pod="web-1",verdict="blocked"} 3
imds_guard_attempts_total{namespace="unknown",workload="unknown",pod="6f1c",verdict="blocked"} 2
imds_guard_attempts_total{namespace="other",workload="other",pod="other",verdict="blocked"} 1
# TYPE imds_guard_protected gauge
imds_guard_protected 1
`

// One job as the PodMonitor makes it, and one as Prometheus finds pods by their annotations: both give an agent's series the
// agent's own namespace and pod.
const scrapes = `global: {scrape_interval: 1s}
scrape_configs:
  - job_name: monitor
    static_configs: &agent [{targets: [%[1]q], labels: {namespace: imds-guard, pod: imds-guard-x, node: a}}]
    metric_relabel_configs: %[2]s
  - job_name: annotation
    static_configs: *agent
`

// TestScrapedLabels: with the PodMonitor, the labels of who asks are those that the agent gives, and so they are in the
// dashboard without it.
func TestScrapedLabels(t *testing.T) {
	t.Parallel()
	agent := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = io.WriteString(w, exposition)
	}))
	defer agent.Close()
	ask := startAlone(t, fmt.Sprintf(scrapes, strings.TrimPrefix(agent.URL, "http://"), relabelConfigs(t)))

	type result struct {
		Metric map[string]string
		Value  []any
	}
	// table is the answer, as rows of labels and the value.
	table := func(query string, without ...string) (rows []string) {
		var data struct{ Result []result }
		ask("query", url.Values{"query": {query}}, &data)
		for _, r := range data.Result {
			maps.DeleteFunc(r.Metric, func(label, _ string) bool { return slices.Contains(without, label) })
			labels, err := json.Marshal(r.Metric)
			if err != nil || len(r.Value) != 2 {
				t.Fatalf("reading %v: %v", r, err)
			}
			rows = append(rows, fmt.Sprint(string(labels), " ", r.Value[1]))
		}
		slices.Sort(rows)
		return rows
	}
	eventually(t, "both jobs were scraped", func() bool { return len(table("imds_guard_protected")) == 2 })

	for query, want := range map[string][]string{
		`imds_guard_attempts_total{job="monitor"}`: {
			`{"namespace":"other","pod":"other","verdict":"blocked","workload":"other"} 1`,
			`{"namespace":"shop","pod":"web-1","verdict":"blocked","workload":"web"} 3`,
			`{"namespace":"unknown","pod":"6f1c","verdict":"blocked","workload":"unknown"} 2`,
		},
		`imds_guard_protected{job="monitor"}`: {`{"namespace":"imds-guard","pod":"imds-guard-x"} 1`},
	} {
		if got := table(query, "__name__", "instance", "job", "node"); !slices.Equal(got, want) {
			t.Errorf("%s\n got %q\nwant %q", query, got, want)
		}
	}
	for _, p := range readDashboard(t).Panels {
		if p.ID != 33 {
			continue
		}
		for _, job := range []string{"monitor", "annotation"} {
			query := strings.ReplaceAll(p.Targets[0].query(), "{", `{job="`+job+`", `)
			want := []string{
				`{"namespace":"other","verdict":"blocked","workload":"other"} 1`,
				`{"namespace":"shop","verdict":"blocked","workload":"web"} 3`,
				`{"namespace":"unknown","verdict":"blocked","workload":"unknown"} 2`,
			}
			if got := table(query); !slices.Equal(got, want) {
				t.Errorf("%s, of the job %s\n got %q\nwant %q", p.Title, job, got, want)
			}
		}
	}
}

// relabelConfigs are those of the PodMonitor, in Prometheus' own words.
func relabelConfigs(t *testing.T) string {
	t.Helper()
	manifest, _, _ := strings.Cut(readFile(t, "../../deploy/monitoring.yaml"), "\n---\n")
	var monitor struct {
		Spec struct {
			PodMetricsEndpoints []struct {
				MetricRelabelings []map[string]any `json:"metricRelabelings"`
			} `json:"podMetricsEndpoints"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal([]byte(manifest), &monitor); err != nil {
		t.Fatalf("reading the PodMonitor: %v", err)
	}
	words := map[string]string{"sourceLabels": "source_labels", "targetLabel": "target_label", "regex": "regex", "action": "action"}
	var configs []map[string]any
	for _, relabeling := range monitor.Spec.PodMetricsEndpoints[0].MetricRelabelings {
		config := map[string]any{}
		for key, value := range relabeling {
			if words[key] == "" {
				t.Fatalf("what is %s of the PodMonitor in Prometheus' own words?", key)
			}
			config[words[key]] = value
		}
		configs = append(configs, config)
	}
	text, err := json.Marshal(configs)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// startAlone starts a Prometheus on this machine. What it returns asks its HTTP API.
func startAlone(t *testing.T, config string) (ask func(path string, parameters url.Values, into any)) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	_ = free.Close()
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "prometheus.yaml"), config)
	cmd := exec.Command("prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("prometheus:\n%s", log.String())
		}
	})
	client := http.Client{Timeout: 30 * time.Second}
	get := func(path string) ([]byte, error) {
		response, err := client.Get("http://" + address + path)
		if err != nil {
			return nil, err
		}
		defer func() { _ = response.Body.Close() }()
		if response.StatusCode != http.StatusOK {
			return nil, fmt.Errorf("%s: %s", path, response.Status)
		}
		return io.ReadAll(response.Body)
	}
	eventually(t, "Prometheus is ready", func() bool { _, err := get("/-/ready"); return err == nil })
	return func(path string, parameters url.Values, into any) {
		t.Helper()
		body, err := get("/api/v1/" + path + "?" + parameters.Encode())
		answer := struct{ Data any }{into}
		if err == nil {
			err = json.Unmarshal(body, &answer)
		}
		if err != nil {
			t.Fatalf("asking Prometheus: %v\n%s", err, body)
		}
	}
}

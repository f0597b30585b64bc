// A real agent on a throwaway node, scraped by a real Prometheus that has the project's rules.
package monitoring

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

const metricsFile = "../../docs/reference/metrics.md"

// foreign are the metrics of kube-state-metrics that alerts and dashboard use; there is none here.
var foreign = []string{"kube_node_info", "kube_node_status_condition", "kube_node_spec_taint",
	"kube_daemonset_status_desired_number_scheduled"}

// The hash is bcrypt's of the password "example".
const webConfig = `tls_server_config:
  cert_file: cert.pem
  key_file: key.pem
basic_auth_users:
  prometheus: $2a$04$ntXp6GS2UR4PouQMf3ReWexLPnUvo97o4hDFLEtgTBu2X0X3jUgEm
`

// One job as the PodMonitor makes it, one without the label node, and one that must not get in.
const config = `global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%[2]s]
scrape_configs:
  - job_name: imds-guard/imds-guard
    scheme: https
    tls_config: {ca_file: %[1]s/cert.pem}
    basic_auth: {username: prometheus, password: example}
    static_configs: [{targets: ["127.0.0.1:9169"], labels: {node: a}}]
  - job_name: by-annotation
    scheme: https
    tls_config: {ca_file: %[1]s/cert.pem}
    basic_auth: {username: prometheus, password: example}
    static_configs: [{targets: ["127.0.0.1:9169"]}]
  - job_name: intruder
    scheme: https
    tls_config: {ca_file: %[1]s/cert.pem}
    basic_auth: {username: prometheus, password: wrong}
    static_configs: [{targets: ["127.0.0.1:9169"]}]
`

// prometheus is a running one.
type prometheus struct {
	t    *testing.T
	node *testnode.Node
}

// eventually waits for what must happen, however slow the machine is.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for start := time.Now(); !is(); time.Sleep(100 * time.Millisecond) {
		if time.Since(start) > 2*time.Minute {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

// run runs a program on the node until the end of the test.
func run(t *testing.T, n *testnode.Node, name string, args ...string) {
	t.Helper()
	log := &testnode.Log{}
	cmd := n.Command(context.Background(), name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(name), log.Tail(50))
		}
	})
}

// writeCertificate writes cert.pem and key.pem for 127.0.0.1.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	pair := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		writeFile(t, filepath.Join(dir, name), string(pem.EncodeToMemory(block)))
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// start starts an agent and a Prometheus on a node with a pod.
func start(t *testing.T) prometheus {
	t.Helper()
	dir := t.TempDir()
	binary := filepath.Join(dir, "imds-guard")
	if out, err := exec.Command("go", "build", "-race", "-o", binary, "../../cmd/imds-guard").CombinedOutput(); err != nil {
		t.Fatalf("building imds-guard: %v\n%s", err, out)
	}
	rules, err := filepath.Abs(alertsFile)
	if err != nil {
		t.Fatal(err)
	}
	writeCertificate(t, dir)
	writeFile(t, filepath.Join(dir, "web.yaml"), webConfig)
	writeFile(t, filepath.Join(dir, "prometheus.yaml"), fmt.Sprintf(config, dir, rules))
	n := testnode.Make(t)
	if _, err := n.AddPod("eni0123456789a"); err != nil {
		t.Fatal(err)
	}
	run(t, n, binary, "run", "--kubernetes=off", "--metrics-bind-address=127.0.0.1:9169",
		"--health-bind-address=127.0.0.1:9168", "--web-config-file="+filepath.Join(dir, "web.yaml"))
	run(t, n, "prometheus", "--config.file="+filepath.Join(dir, "prometheus.yaml"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address=127.0.0.1:9090")
	p := prometheus{t, n}
	eventually(t, "the agent is ready", func() bool { _, err := p.get("http://127.0.0.1:9168/readyz"); return err == nil })
	eventually(t, "the agent was scraped", func() bool {
		_, err := p.get("http://127.0.0.1:9090/-/ready")
		return err == nil && len(p.series("imds_guard_protected")) == 2
	})
	return p
}

func (p prometheus) get(url string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return p.node.Host().Get(ctx, url)
}

// ask asks the HTTP API, and fails the test if that is an error.
func (p prometheus) ask(path string, parameters url.Values, into any) {
	p.t.Helper()
	body, err := p.get("http://127.0.0.1:9090/api/v1/" + path + "?" + parameters.Encode())
	if err != nil {
		p.t.Fatalf("%v\n%s", err, body)
	}
	answer := struct {
		Status string
		Data   any
	}{Data: into}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("asking %s: %v: %s", path, err, body)
	}
}

// series are those that a selector selects.
func (p prometheus) series(selector string) (found []map[string]string) {
	p.t.Helper()
	p.ask("series", url.Values{"match[]": {selector}}, &found)
	return found
}

// query returns the results of a query, at this moment and, as a panel asks, over time.
func (p prometheus) query(expr string) (results []json.RawMessage) {
	p.t.Helper()
	var data struct{ Result []json.RawMessage }
	p.ask("query", url.Values{"query": {expr}}, &data)
	now := time.Now().Unix()
	var over struct{ Result []json.RawMessage }
	p.ask("query_range", url.Values{
		"query": {expr}, "start": {fmt.Sprint(now - 60)}, "end": {fmt.Sprint(now)}, "step": {"5"},
	}, &over)
	return data.Result
}

var (
	matchers = regexp.MustCompile(`\{[^}]*\}`)
	compares = regexp.MustCompile(`[<>]|==|!=`)
	suffixes = regexp.MustCompile(`_(bucket|sum|count)$`)
	ours     = regexp.MustCompile(`imds_guard_[a-z_]+`)
	asked    = regexp.MustCompile("printf `([^`]+)`")
	rows     = regexp.MustCompile("(?m)^\\| `(imds_guard_[a-z_]+)` \\| [^|]+ \\|([^|]*)\\|")
	codes    = regexp.MustCompile("`([^`]+)`")
)

func TestPrometheus(t *testing.T) {
	t.Parallel()
	p := start(t)
	queries := readDashboard(t).queries()
	if len(queries) < 20 {
		t.Fatalf("the dashboard has only %d queries", len(queries))
	}

	// Every name and every label value that something asks for exists.
	expressions := slices.Clone(queries)
	for _, a := range readAlerts(t) {
		expressions = append(expressions, a.Expr)
		for _, q := range asked.FindAllStringSubmatch(a.Annotations["description"], -1) {
			expressions = append(expressions, strings.ReplaceAll(q[1], "=%q", `=~".*"`))
		}
	}
	for _, v := range readDashboard(t).Templating.List {
		if _, arguments, ok := strings.Cut(v.Definition, "label_values("); ok {
			metric, label, _ := strings.Cut(strings.TrimSuffix(arguments, ")"), ", ")
			expressions = append(expressions, strings.ReplaceAll(metric, "$cluster", ".*"))
			if label != "cluster" && len(p.series(`imds_guard_protected{`+label+`!=""}`)) == 0 {
				t.Errorf("nothing has the label %q of %s", label, v.Name)
			}
		}
	}
	for _, expr := range expressions {
		for _, selector := range selectors(expr) {
			if name := matchers.ReplaceAllString(selector, ""); slices.Contains(foreign, name) {
				continue
			}
			if len(p.series(selector)) == 0 {
				t.Errorf("%s does not exist; asked for by\n%s", selector, expr)
			}
		}
	}

	// Every query works; one that does not look for trouble has an answer.
	for _, q := range queries {
		trouble := compares.MatchString(matchers.ReplaceAllString(q, ""))
		if results := p.query(q); len(results) == 0 && !trouble {
			eventually(t, q+" has an answer", func() bool { return len(p.query(q)) > 0 })
		}
	}

	p.testAlerts()
	p.testDocumented()
	if results := p.query(`up{job="intruder"} == 0`); len(results) != 1 {
		t.Error("a wrong password is good enough for the metrics")
	}
}

// testAlerts: Prometheus can evaluate every alert, and on a node where all is well there is none.
func (p prometheus) testAlerts() {
	p.t.Helper()
	type rule struct{ Name, Health, State, LastError string }
	var data struct{ Groups []struct{ Rules []rule } }
	rules := func() (all []rule) {
		p.ask("rules", nil, &data)
		for _, g := range data.Groups {
			all = append(all, g.Rules...)
		}
		return all
	}
	eventually(p.t, "every rule was evaluated", func() bool {
		return !slices.ContainsFunc(rules(), func(r rule) bool { return r.Health == "unknown" })
	})
	found := rules()
	if want := len(readAlerts(p.t)); len(found) != want {
		p.t.Errorf("Prometheus has %d rules, want %d", len(found), want)
	}
	for _, r := range found {
		if r.Health != "ok" || r.State != "inactive" {
			p.t.Errorf("%s is %s and %s: %s", r.Name, r.Health, r.State, r.LastError)
		}
	}
}

// testDocumented: the table of the documentation has every metric of the agent's with its labels, and no other. Where it has
// the values of a label, they are all.
func (p prometheus) testDocumented() {
	p.t.Helper()
	text := readFile(p.t, metricsFile)
	var documented, exposed []string
	valued := map[string]bool{}
	for _, row := range rows.FindAllStringSubmatch(text, -1) {
		documented = append(documented, row[1])
		for part := range strings.SplitSeq(row[2], ",") {
			words := codes.FindAllStringSubmatch(part, -1)
			for i, word := range words {
				label := row[1] + " " + words[0][1]
				switch {
				case len(words) == 1:
					documented = append(documented, label)
				case i > 0:
					valued[label] = true
					documented = append(documented, label+"="+word[1])
				}
			}
		}
	}
	scraped := []string{"__name__", "instance", "job", "node", "le"}
	for _, s := range p.series(`{__name__=~"imds_guard_.+"}`) {
		name := suffixes.ReplaceAllString(s["__name__"], "")
		exposed = append(exposed, name)
		for label, value := range s {
			if slices.Contains(scraped, label) {
				continue
			}
			label = name + " " + label
			if valued[label] {
				label += "=" + value
			}
			exposed = append(exposed, label)
		}
	}
	for _, pattern := range []string{"../../docs/*.md", "../../docs/*/*.md"} {
		pages, err := filepath.Glob(pattern)
		if err != nil || len(pages) == 0 {
			p.t.Fatalf("there is no %s: %v", pattern, err)
		}
		for _, page := range pages {
			for _, name := range ours.FindAllString(readFile(p.t, page), -1) {
				if name = suffixes.ReplaceAllString(name, ""); !slices.Contains(exposed, name) {
					p.t.Errorf("%s speaks of %s, which the agent does not have", page, name)
				}
			}
		}
	}
	slices.Sort(exposed)
	slices.Sort(documented)
	exposed, documented = slices.Compact(exposed), slices.Compact(documented)
	for _, line := range exposed {
		if !slices.Contains(documented, line) {
			p.t.Errorf("the agent has %s, and the table of %s does not", line, metricsFile)
		}
	}
	for _, line := range documented {
		if !slices.Contains(exposed, line) {
			p.t.Errorf("the table of %s has %s, and the agent does not", metricsFile, line)
		}
	}
}

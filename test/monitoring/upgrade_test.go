// What the dashboard shows of a fleet that is half upgraded, from agents without the label layer to agents with it.
package monitoring

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// fleet are the agents that Prometheus knows of at 32 minutes. c, d and e were upgraded at half past, and what their old
// agents said last is still there. d is scraped so that nothing but `layer` tells its two agents apart. e is not protected,
// and its new agent has a second layer, which was last verified at 10 minutes.
var fleet = []struct {
	target    string
	layers    []string
	life      life
	protected string
}{
	{`node="a", instance="a:1", pod="p"`, []string{""}, whole, "1"},
	{`node="b", instance="b:1", pod="q"`, []string{"iptables"}, whole, "1"},
	{`node="c", instance="c:1", pod="r"`, []string{""}, before, "1"},
	{`node="c", instance="c:1", pod="s"`, []string{"iptables"}, after, "1"},
	{`node="d", instance="d:1"`, []string{""}, before, "1"},
	{`node="d", instance="d:1"`, []string{"iptables"}, after, "1"},
	{`node="e", instance="e:1", pod="t"`, []string{""}, before, "0"},
	{`node="e", instance="e:1", pod="u"`, []string{"iptables", "route"}, after, "0"},
}

// life is when an agent answers, in promtool's notation: the format of a constant, a counter that grows by 60 a minute from
// the agent's start, and a clock.
type life struct{ constant, counter, clock string }

var (
	whole  = life{"%sx40", "0+60x40", "0+60x40"}
	before = life{"%sx30", "0+60x30", "0+60x30"}
	after  = life{"_x31 %sx9", "_x31 0+60x9", "_x31 1860+60x9"}
)

type series struct {
	Series string `json:"series"`
	Values string `json:"values"`
}

// inputSeries are all series of the fleet, and the nodes by kube-state-metrics; f has no agent. Another cluster doesn't have
// the DaemonSet.
func inputSeries() (all []series) {
	seen := map[string]int{}
	add := func(name, labels, values string) {
		id := fmt.Sprintf("imds_guard_%s{%s}", name, labels)
		if i, ok := seen[id]; ok {
			// Both of d's agents say this, under the same labels: it does not end.
			all[i].Values = strings.Replace(all[i].Values, "x30", "x40", 1)
			return
		}
		seen[id] = len(all)
		all = append(all, series{id, values})
	}
	for _, a := range fleet {
		constant := func(value string) string { return fmt.Sprintf(a.life.constant, value) }
		add("protected", a.target, constant(a.protected))
		add("interfaces", a.target+`, coverage="none"`, constant("2"))
		add("backend_info", a.target+`, backend="nft", version="1.8.9"`, constant("1"))
		add("build_info", a.target+`, version="v1", commit="abc"`, constant("1"))
		for _, layer := range a.layers {
			labels := a.target + `, family="ipv4"`
			if layer != "" {
				labels += fmt.Sprintf(", layer=%q", layer)
			}
			verified := a.life.clock
			if layer == "route" {
				verified = constant("600")
			}
			add("contended", labels, constant("1"))
			add("rule_state", labels+`, state="displaced"`, constant("1"))
			add("rule_state", labels+`, state="enforced"`, constant("0"))
			add("last_verified_timestamp_seconds", labels, verified)
			add("drift_total", labels+`, reason="missing"`, a.life.counter)
			add("repairs_total", labels+`, result="success"`, a.life.counter)
			add("repair_duration_seconds_bucket", labels+`, le="1"`, a.life.counter)
			add("repair_duration_seconds_bucket", labels+`, le="+Inf"`, a.life.counter)
			add("blocked_packets_total", labels, a.life.counter)
		}
	}
	for _, node := range "abcdef" {
		ready := fmt.Sprintf(`kube_node_status_condition{node="%c", condition="Ready", status="true"}`, node)
		all = append(all, series{ready, "1x40"})
	}
	return append(all,
		series{`kube_daemonset_status_desired_number_scheduled{daemonset="imds-guard"}`, "6x40"},
		series{`kube_node_status_condition{cluster="other", node="a", condition="Ready", status="true"}`, "1x40"})
}

// byNode are samples with a node's labels, and layered those of what the layers have in common.
func byNode(values ...string) (samples []string) {
	for i, value := range values {
		samples = append(samples, fmt.Sprintf(`{node="%[1]c", instance="%[1]c:1"} %[2]s`, 'a'+i, value))
	}
	return samples
}

func layered(iptables, route, more string) []string {
	return []string{
		fmt.Sprintf(`{layer="iptables", family="ipv4"%s} %s`, more, iptables),
		fmt.Sprintf(`{layer="route", family="ipv4"%s} %s`, more, route),
	}
}

// layeredByNode is a sample of 1 for each layer of each node.
func layeredByNode(more string) (samples []string) {
	for _, node := range "abcde" {
		samples = append(samples, fmt.Sprintf(`{node="%[1]c", instance="%[1]c:1", layer="iptables", family="ipv4"%[2]s} 1`,
			node, more))
	}
	return append(samples, fmt.Sprintf(`{node="e", instance="e:1", layer="route", family="ipv4"%s} 1`, more))
}

// TestDashboardDuringUpgrade: an agent from before the label layer counts as one with the layer iptables, and nothing is
// counted twice while a node's agent is replaced.
//
// Within 5 minutes, what counts from before the upgrade on grew by 240 (of which Prometheus reckons 210), and what counts
// since by 60.
func TestDashboardDuringUpgrade(t *testing.T) {
	t.Parallel()
	want := map[string][]string{
		"Agents 2A":                                  {`{} 5`},
		"Protected nodes 3A":                         {`{} 4`},
		"Nodes not protected 4A":                     {`{} 1`},
		"Nodes without an agent 5A":                  {`{} 1`},
		"Interfaces not covered 6A":                  {`{} 10`},
		"Fights 7A":                                  {`{} 6`},
		"Nodes not protected 8A":                     {`{node="e", instance="e:1"} 0`},
		"Rules not enforced as wanted, by node 9A":   layeredByNode(`, state="displaced"`),
		"Interfaces not covered, by node 10A":        byNode("2", "2", "2", "2", "2"),
		"Nodes by protection 11A":                    {`{} 4`},
		"Nodes by protection 11B":                    {`{} 1`},
		"Nodes by state of the rules 12A":            layered("5", "1", `, state="displaced"`),
		"Oldest verification 13A":                    layered("0", "1320", ""),
		"Drift by reason 15A":                        layered("1410", "60", `, reason="missing"`),
		"Drift by node (10 with most) 16A":           byNode("300", "300", "270", "270", "330"),
		"Fights 17A":                                 layeredByNode(""),
		"Repairs 18A":                                layered("1410", "60", `, result="success"`),
		"Repair duration 19A":                        layered("0.99", "0.99", ""),
		"Repair duration 19B":                        layered("0.5", "0.5", ""),
		"Blocked packets by node (10 with most) 22A": byNode("1", "1", "0.9", "0.9", "1.1"),
		"Pod-side interfaces 23A":                    {`{coverage="none"} 10`},
		"iptables backends 26A":                      {`{backend="nft", version="1.8.9"} 5`},
		"Versions 27A":                               {`{version="v1", commit="abc"} 5`},
	}
	testPanels(t, inputSeries(), "32m", want)
}

// testPanels asks what the dashboard asks, at some time, of series that promtool makes up. want are the results, rounded to
// thousandths, by the panel's title and id and the query's letter. Every panel that the series have something for is there.
func testPanels(t *testing.T, input []series, at string, want map[string][]string) {
	t.Helper()
	type sample struct {
		Labels string      `json:"labels"`
		Value  json.Number `json:"value"`
	}
	type question struct {
		Expr    string   `json:"expr"`
		At      string   `json:"eval_time"`
		Samples []sample `json:"exp_samples"`
	}
	var questions []question
	label := regexp.MustCompile(`(\w+)=`)
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			name := fmt.Sprintf("%s %d%s", p.Title, p.ID, target.RefID)
			samples, ok := want[name]
			delete(want, name)
			if !ok {
				if slices.ContainsFunc(shown(target.query()), func(selector string) bool {
					metric := matchers.ReplaceAllString(selector, "")
					return slices.ContainsFunc(input, func(s series) bool { return strings.HasPrefix(s.Series, metric+"{") })
				}) {
					t.Errorf("%s is not tested", name)
				}
				continue
			}
			// Rounded, because sums of fractions depend on their order.
			q := question{Expr: fmt.Sprintf("round(%s, 0.001)", target.query()), At: at}
			for _, s := range samples {
				labels, value, _ := strings.Cut(s, "} ")
				q.Samples = append(q.Samples, sample{labels + "}", json.Number(value)})
			}
			for _, l := range label.FindAllStringSubmatch(samples[0], -1) {
				if p.Type == "timeseries" && !strings.Contains(target.Legend, "{{"+l[1]+"}}") {
					t.Errorf("%s: the legend %q lacks %s", name, target.Legend, l[1])
				}
			}
			questions = append(questions, q)
		}
	}
	for name := range want {
		t.Errorf("there is no query %s", name)
	}
	text, err := yaml.Marshal(map[string]any{"tests": []any{
		map[string]any{"interval": "1m", "input_series": input, "promql_expr_test": questions},
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	writeFile(t, file, string(text))
	if out, err := exec.Command("promtool", "test", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

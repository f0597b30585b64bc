// Package monitoring tests what is told of the agents: the alerts, the dashboard and their documentation, with promtool and
// a real Prometheus that scrapes a real agent.
package monitoring

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

const (
	alertsFile  = "../../deploy/chart/imds-guard/files/alerts.yaml"
	alertTests  = "alerts*.yaml"
	runbooksURL = "https://github.com/imds-guard/imds-guard/blob/main/docs/runbooks/"
)

type alert struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parse(t *testing.T, file string, into any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(readFile(t, file)), into); err != nil {
		t.Fatalf("reading %s: %v", file, err)
	}
}

func readAlerts(t *testing.T) (alerts []alert) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []alert `json:"rules"`
		} `json:"groups"`
	}
	parse(t, alertsFile, &file)
	for _, g := range file.Groups {
		alerts = append(alerts, g.Rules...)
	}
	if len(alerts) == 0 {
		t.Fatal("there is no alert")
	}
	return alerts
}

func alertTestFiles(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(alertTests)
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no file %s: %v", alertTests, err)
	}
	return files
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"check", "rules", "--lint=all", "--lint-fatal", alertsFile},
		append([]string{"test", "rules"}, alertTestFiles(t)...),
	} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// TestAlertsBothWays: an alert is not tested before it was seen to fire, and to be silent.
func TestAlertsBothWays(t *testing.T) {
	t.Parallel()
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, name := range alertTestFiles(t) {
		var file struct {
			Tests []struct {
				Cases []struct {
					Name   string `json:"alertname"`
					Alerts []any  `json:"exp_alerts"`
				} `json:"alert_rule_test"`
			} `json:"tests"`
		}
		parse(t, name, &file)
		for _, test := range file.Tests {
			for _, c := range test.Cases {
				fires[c.Name] = fires[c.Name] || len(c.Alerts) > 0
				silent[c.Name] = silent[c.Name] || len(c.Alerts) == 0
			}
		}
	}
	for _, a := range readAlerts(t) {
		if !fires[a.Alert] || !silent[a.Alert] {
			t.Errorf("%s: tested to fire %t, to be silent %t", a.Alert, fires[a.Alert], silent[a.Alert])
		}
		delete(fires, a.Alert)
	}
	for name := range fires {
		t.Errorf("%s is tested, and there is no such alert", name)
	}
}

// TestRunbooks: whoever is paged is led to the page of the alert; test/docs sees that it is there.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	for _, a := range readAlerts(t) {
		if want := runbooksURL + a.Alert + ".md"; a.Annotations["runbook_url"] != want {
			t.Errorf("%s has the runbook %q, want %q", a.Alert, a.Annotations["runbook_url"], want)
		}
	}
}

// TestAlertLabels: what Alertmanager routes by, and what it shows of a group of alerts.
func TestAlertLabels(t *testing.T) {
	t.Parallel()
	for _, a := range readAlerts(t) {
		if !slices.Contains([]string{"critical", "warning", "info"}, a.Labels["severity"]) {
			t.Errorf("%s has the severity %q", a.Alert, a.Labels["severity"])
		}
		if a.Labels["namespace"] != "imds-guard" {
			t.Errorf("%s has the namespace %q: no AlertmanagerConfig routes it", a.Alert, a.Labels["namespace"])
		}
		if a.Annotations["description"] == "" {
			t.Errorf("%s has no description", a.Alert)
		}
		// One that names a node differs within a group, and Alertmanager's templates show what all have in common.
		if summary := a.Annotations["summary"]; summary == "" || strings.Contains(summary, "{{") {
			t.Errorf("%s has the summary %q, which is to be the same on every node", a.Alert, summary)
		}
	}
}

// The alerts as the chart renders them.
package deploy_test

import (
	"os/exec"
	"testing"
)

// An AlertmanagerConfig routes only the alerts that have its own namespace as their label.
func TestAlertsHaveTheNamespaceOfTheRelease(t *testing.T) {
	out, err := exec.Command(helm(t), "template", "imds-guard", chart, "--namespace=security", "--show-only=templates/prometheusrule.yaml",
		"--set=prometheusRule.enabled=true", "--set=image.repository=r.example.com/a").Output()
	if err != nil {
		t.Fatalf("rendering: %v", err)
	}
	rules, _ := at(map[string]any(parse(t, string(out))), "PrometheusRule/imds-guard spec groups 0 rules").([]any)
	if len(rules) == 0 {
		t.Fatal("there is no alert")
	}
	for _, rule := range rules {
		if got := at(rule, "labels namespace"); got != "security" {
			t.Errorf("%v has the namespace %v", at(rule, "alert"), got)
		}
	}
}

// The exposition, held against the contract and Prometheus' own linter.

package agent

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"os/exec"

	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// contract is every series that must exist from the start, with `*` for what differs from build to build.
const contract = `
imds_guard_backend_info{backend="nft",version="*"}
imds_guard_blocked_packets_total{family="F",layer="L"}
imds_guard_build_info{commit="*",goversion="*",version="*"}
imds_guard_contended{family="F",layer="L"}
imds_guard_degraded
imds_guard_drift_total{family="F",layer="iptables",reason="displaced"}
imds_guard_drift_total{family="F",layer="iptables",reason="duplicate"}
imds_guard_drift_total{family="F",layer="L",reason="missing"}
imds_guard_drift_total{family="F",layer="L",reason="shadowed"}
imds_guard_drift_total{family="F",layer="L",reason="unknown"}
imds_guard_interface_events_total{type="added"}
imds_guard_interface_events_total{type="removed"}
imds_guard_interface_events_total{type="resync"}
imds_guard_interfaces{coverage="none"}
imds_guard_interfaces{coverage="route"}
imds_guard_interfaces{coverage="rule"}
imds_guard_iptables_errors_total{family="F",operation="O",reason="exec"}
imds_guard_iptables_errors_total{family="F",operation="O",reason="incompatible"}
imds_guard_iptables_errors_total{family="F",operation="O",reason="lock"}
imds_guard_iptables_errors_total{family="F",operation="O",reason="other"}
imds_guard_kubernetes_requests_total{operation="get_node",result="error"}
imds_guard_kubernetes_requests_total{operation="get_node",result="success"}
imds_guard_kubernetes_requests_total{operation="list_pods",result="error"}
imds_guard_kubernetes_requests_total{operation="list_pods",result="success"}
imds_guard_kubernetes_requests_total{operation="patch_node",result="error"}
imds_guard_kubernetes_requests_total{operation="patch_node",result="success"}
imds_guard_kubernetes_requests_total{operation="patch_status",result="error"}
imds_guard_kubernetes_requests_total{operation="patch_status",result="success"}
imds_guard_kubernetes_requests_total{operation="record_event",result="error"}
imds_guard_kubernetes_requests_total{operation="record_event",result="success"}
imds_guard_kubernetes_requests_total{operation="watch_pods",result="error"}
imds_guard_kubernetes_requests_total{operation="watch_pods",result="success"}
imds_guard_last_verified_timestamp_seconds{family="F",layer="L"}
imds_guard_looks_total{family="F",layer="L"}
imds_guard_mode{mode="audit"}
imds_guard_mode{mode="enforce"}
imds_guard_probe_last_success_timestamp_seconds{family="F",path="forward"}
imds_guard_probe_last_success_timestamp_seconds{family="F",path="socket"}
imds_guard_probe_last_success_timestamp_seconds{family="F",path="unnamed"}
imds_guard_probe_results_total{family="F",path="forward",result="answered"}
imds_guard_probe_results_total{family="F",path="forward",result="error"}
imds_guard_probe_results_total{family="F",path="forward",result="stopped"}
imds_guard_probe_results_total{family="F",path="socket",result="answered"}
imds_guard_probe_results_total{family="F",path="socket",result="error"}
imds_guard_probe_results_total{family="F",path="socket",result="stopped"}
imds_guard_probe_results_total{family="F",path="unnamed",result="answered"}
imds_guard_probe_results_total{family="F",path="unnamed",result="error"}
imds_guard_probe_results_total{family="F",path="unnamed",result="stopped"}
imds_guard_protected
imds_guard_repair_duration_seconds_count{family="F",layer="L"}
imds_guard_repair_duration_seconds_sum{family="F",layer="L"}
imds_guard_repairs_total{family="F",layer="L",result="error"}
imds_guard_repairs_total{family="F",layer="L",result="success"}
imds_guard_rule_state{family="F",layer="iptables",state="displaced"}
imds_guard_rule_state{family="F",layer="iptables",state="duplicate"}
imds_guard_rule_state{family="F",layer="L",state="enforced"}
imds_guard_rule_state{family="F",layer="L",state="missing"}
imds_guard_rule_state{family="F",layer="L",state="shadowed"}
imds_guard_rule_state{family="F",layer="L",state="unknown"}
imds_guard_rule_state{family="F",layer="L",state="unsupported"}
imds_guard_watch_losses_total{watcher="interfaces"}
imds_guard_watch_losses_total{watcher="legacy"}
imds_guard_watch_losses_total{watcher="nftables"}
imds_guard_watch_losses_total{watcher="route"}
`

// expand writes out the layers, families and operations.
func expand(lines string) (series []string) {
	for line := range strings.Lines(strings.TrimSpace(lines)) {
		line = strings.TrimSpace(line)
		for _, family := range []string{"ipv4", "ipv6"} {
			for _, operation := range []string{"version", "list", "insert", "restore"} {
				for _, layer := range []string{rules.LayerName, route.LayerName} {
					series = append(series, strings.NewReplacer(`"F"`, `"`+family+`"`, `"O"`, `"`+operation+`"`, `"L"`, `"`+layer+`"`).Replace(line))
				}
			}
		}
	}
	slices.Sort(series)
	return slices.Compact(series)
}

var varying = regexp.MustCompile(`(version|commit|goversion)="[^"]*"`)

func TestExposition(t *testing.T) {
	t.Parallel()
	n, _ := bothLayers(t)
	a := n.startReady("--backend", "nft")
	text, err := a.get("/metrics")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for line := range strings.Lines(text) {
		if series, _, ok := strings.Cut(line, "} "); ok && strings.HasPrefix(line, "imds_guard_") && !strings.Contains(series, "_bucket{") {
			got = append(got, varying.ReplaceAllString(series, `$1="*"`)+"}")
		} else if series, _, _ := strings.Cut(line, " "); strings.HasPrefix(series, "imds_guard_") && !strings.Contains(series, "{") {
			got = append(got, series)
		}
	}
	slices.Sort(got)
	if want := expand(contract); !slices.Equal(got, want) {
		t.Errorf("the exposition has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	lint := exec.Command("promtool", "check", "metrics")
	lint.Stdin = strings.NewReader(text)
	if out, err := lint.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool check metrics: %v\n%s", err, out)
	}
}

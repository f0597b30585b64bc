// Every value of the chart does something: each is set to something other than its default, and what is rendered differs.
package deploy_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// sample is another value than the default, and what else has to be set for it to matter, both as YAML.
type sample struct{ value, with string }

const (
	withMonitor   = "podMonitor: {enabled: true}"
	withRules     = "prometheusRule: {enabled: true}"
	withDashboard = "dashboard: {enabled: true}"
	withWebConfig = "webConfig: {secretName: web}"
	aMap          = "{a: b}"
	aSecret       = "[{name: a}]"
	aToleration   = "[{key: a, operator: Exists}]"
)

var samples = map[string]sample{
	"image repository":  {value: "registry.example.com/other"},
	"image tag":         {value: "v9"},
	"image digest":      {value: "sha256:" + strings.Repeat("0", 64)},
	"image pullPolicy":  {value: "Always"},
	"image pullSecrets": {value: aSecret},

	"imagePullSecrets":     {value: aSecret},
	"global imageRegistry": {value: "mirror.example.com"},

	"agent mode":                  {value: "audit"},
	"agent interface":             {value: "[cali+]"},
	"agent layers":                {value: "[route, cgroup]"},
	"agent podsCgroup":            {value: "/pods"},
	"agent hostNetworkPods":       {value: "audit"},
	"agent hostNetworkNamespaces": {value: "[a]"},
	"agent attribution":           {value: "off"},
	"agent backend":               {value: "nft"},
	"agent verdict":               {value: "reject"},
	"agent resyncPeriod":          {value: "1m"},
	"agent probeInterval":         {value: "1m"},
	"agent kubernetes":            {value: "off"},
	"agent metricsBindAddress":    {value: `":9999"`},
	"agent healthBindAddress":     {value: `""`},
	"agent logLevel":              {value: "debug"},
	"agent logFormat":             {value: "text"},

	"extraArgs":         {value: "[--config=/a]"},
	"extraEnv":          {value: "[{name: A, value: b}]"},
	"extraVolumes":      {value: "[{name: a, emptyDir: {}}]"},
	"extraVolumeMounts": {value: "[{name: a, mountPath: /a}]"},
	"extraObjects":      {value: "[{apiVersion: v1, kind: ConfigMap, metadata: {name: a}}]"},

	"webConfig secretName": {value: "web"},
	"webConfig file":       {"a.yml", withWebConfig},
	"webConfig tls":        {"false", withWebConfig},

	"hardened":                   {value: "true"},
	"nameOverride":               {value: "guard"},
	"fullnameOverride":           {value: "guard"},
	"commonLabels":               {value: aMap},
	"serviceAccount create":      {"false", "serviceAccount: {name: imds-guard}"},
	"serviceAccount name":        {value: "other"},
	"serviceAccount annotations": {value: aMap},
	"rbac create":                {value: "false"},
	"admissionPolicy enabled":    {value: "false"},
	"policies services":          {value: "true"},
	"policies probes":            {value: "true"},
	"cleanup run":                {value: "true"},
	"cleanup onUninstall":        {value: "true"},
	"test node":                  {value: "node-a"},
	"test tolerations":           {value: aToleration},
	"prometheusAnnotations":      {value: "false"},

	"podMonitor enabled":           {value: "true"},
	"podMonitor namespace":         {"monitoring", withMonitor},
	"podMonitor interval":          {"10s", withMonitor},
	"podMonitor scrapeTimeout":     {"5s", withMonitor},
	"podMonitor labels":            {aMap, withMonitor},
	"podMonitor tlsConfig":         {"{serverName: a}", withMonitor},
	"podMonitor basicAuth":         {"{username: {name: a}}", withMonitor},
	"podMonitor relabelings":       {"[{targetLabel: a, replacement: b}]", withMonitor},
	"podMonitor metricRelabelings": {"[{targetLabel: a, replacement: b}]", withMonitor},

	"prometheusRule enabled":    {value: "true"},
	"prometheusRule namespace":  {"monitoring", withRules},
	"prometheusRule labels":     {aMap, withRules},
	"prometheusRule runbookURL": {"https://wiki.example.com", withRules},
	"prometheusRule alerts":     {"{ImdsGuardNotProtected: {enabled: false}}", withRules},

	"dashboard enabled":                  {value: "true"},
	"dashboard labels grafana_dashboard": {`"2"`, withDashboard},
	"dashboard annotations":              {aMap, withDashboard},

	"resources requests cpu":                      {value: "20m"},
	"resources requests memory":                   {value: "64Mi"},
	"resources limits memory":                     {value: "256Mi"},
	"priorityClassName":                           {value: "other"},
	"tolerations":                                 {value: aToleration},
	"nodeSelector kubernetes.io/os":               {value: "other"},
	"updateStrategy type":                         {value: "OnDelete"},
	"updateStrategy rollingUpdate maxUnavailable": {value: "5%"},
	"podAnnotations":                              {value: aMap},
	"podLabels":                                   {value: aMap},
	"affinity nodeAffinity requiredDuringSchedulingIgnoredDuringExecution nodeSelectorTerms": {
		value: "[{matchExpressions: [{key: a, operator: Exists}]}]"},
}

func TestEveryValueIsRendered(t *testing.T) {
	defaults, err := os.ReadFile(chart + "/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	paths := leaves(parseYAML(t, string(defaults)), "")
	for path := range samples {
		if !slices.Contains(paths, path) {
			t.Errorf("there is a sample of %q, and no such value", path)
		}
	}
	unset := map[string]string{} // what is rendered without the value, by what else is set
	for _, s := range samples {
		if _, rendered := unset[s.with]; !rendered {
			unset[s.with] = renderFiles(t, s.with)
		}
	}
	for _, path := range paths {
		s, there := samples[path]
		if !there {
			t.Errorf("the value %q has no sample: add one, which differs from the default", path)
			continue
		}
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			value := s.value
			for _, key := range slices.Backward(strings.Fields(path)) {
				value = "{" + key + ": " + value + "}"
			}
			if renderFiles(t, s.with, value) == unset[s.with] {
				t.Errorf("%s changes nothing that is rendered", value)
			}
		})
	}
}

// leaves are the paths of all values: of scalars, of lists, and of maps that are empty by default.
func leaves(values any, path string) (paths []string) {
	m, isMap := values.(map[string]any)
	if !isMap || len(m) == 0 {
		return []string{path}
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		paths = append(paths, leaves(m[key], strings.TrimSpace(path+" "+key))...)
	}
	return paths
}

func parseYAML(t *testing.T, text string) (parsed any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(text), &parsed); err != nil {
		t.Fatal(err)
	}
	return parsed
}

// renderFiles returns all that the chart makes of values that are given as YAML, one after the other.
func renderFiles(t *testing.T, values ...string) string {
	t.Helper()
	args := []string{chart}
	for _, text := range append([]string{"image: {repository: " + placeholder + "}"}, values...) {
		file := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--values="+file)
	}
	manifest, stderr, err := helmTemplate(t, args...)
	if err != nil {
		t.Fatalf("rendering %q: %v: %s", values, err, stderr)
	}
	return manifest
}

// extraArgs: the agent's own file may say what the chart doesn't decide, and nothing on the command line contradicts the chart.
package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/imds-guard/imds-guard/pkg/config"
)

// The chart has a list of the flags that it decides, since values could be unset.
func TestExtraArgsRefuseEveryFlagButTheFile(t *testing.T) {
	runFlags().VisitAll(func(f *pflag.Flag) {
		_, stderr, err := render(t, "extraArgs={--"+f.Name+"=x}")
		refused := err != nil && strings.Contains(stderr, "extraArgs: --"+f.Name+" has a value of its own")
		if want := f.Name != "config"; refused != want {
			t.Errorf("--%s is refused: %t, want %t: %v: %s", f.Name, refused, want, err, stderr)
		}
	})
}

// Whatever the file says: the rest of the chart, such as the probes, the rights and helm test, goes by the values.
func TestTheChartWinsOverTheFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := `{mode: audit, layers: iptables, kubernetes: off, attribution: off, host-network-pods: block, metrics-bind-address: off,
		health-bind-address: ":1", web-config-file: /x, node-name: other, kubeconfig: /x, backend: nft}`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, option := range []string{"{--config=" + file + "}", "{--config," + file + "}"} {
		docs := mustRender(t, "agent.healthBindAddress=", "extraArgs="+option)
		list, _ := at(map[string]any(docs), agent+"args").([]any)
		options, flags := config.NewOptions(), pflag.NewFlagSet("run", pflag.ContinueOnError)
		options.AddTo(flags)
		var args []string
		for _, a := range list[1:] {
			args = append(args, strings.ReplaceAll(a.(string), "$(NODE_NAME)", "mine"))
		}
		if err := flags.Parse(args); err != nil {
			t.Fatal(err)
		}
		c, err := options.Load()
		if err != nil {
			t.Fatal(err)
		}
		if c.Mode != "enforce" || !slices.Equal(c.Layers, []string{"iptables", "route", "cgroup"}) || c.Kubernetes != config.Auto ||
			!c.Attribution || c.HostNetwork != "allow" || c.MetricsAddress != ":9169" || c.HealthAddress != "" || c.WebConfigFile != "" ||
			c.NodeName != "mine" || c.Kubeconfig != "" {
			t.Errorf("%s has a say over what the chart decided: %+v", option, c)
		}
		if c.Backend != "nft" {
			t.Errorf("%s has no say at all: %+v", option, c)
		}
	}
}

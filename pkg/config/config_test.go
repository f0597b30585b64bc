package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// load parses a command line and loads the configuration. A text that is not empty becomes the config file.
func load(t *testing.T, file string, args ...string) (Config, error) {
	t.Helper()
	o := NewOptions()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	o.AddTo(flags)
	if file != "" {
		path := filepath.Join(t.TempDir(), "config.yaml")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--config", path)
	}
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	return o.Load()
}

func patterns(t *testing.T, texts ...string) (list []ifpattern.Pattern) {
	t.Helper()
	for _, text := range texts {
		p, err := ifpattern.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
	return list
}

// outside sets the environment of a program that was not started by a kubelet.
func outside(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	t.Setenv("NODE_NAME", "")
}

func defaults(t *testing.T) Config {
	return Config{
		Interfaces: patterns(t, "eni+"), Layers: []string{"iptables", "route", "cgroup"}, Backend: rules.Auto, Verdict: policy.Drop, Resync: 10 * time.Second,
		HostNetwork: policy.Allow, HostNamespaces: []string{"kube-system"}, Mode: policy.Enforce, Attribution: true,
		MetricsAddress: ":9169", Kubernetes: Auto, LogLevel: slog.LevelInfo, LogFormat: "text",
	}
}

// Each setting has the same effect as a flag and in the file, and changes nothing else.
func TestSettings(t *testing.T) {
	outside(t)
	for _, c := range []struct {
		flag, value string
		file        string // the value in YAML, if it is written in another way there
		change      func(*Config)
	}{
		{"interface", "vlan+", "", func(c *Config) { c.Interfaces = patterns(t, "vlan+") }},
		{"interface", "vlan+,eni+", "[vlan+, eni+]", func(c *Config) { c.Interfaces = patterns(t, "vlan+", "eni+") }},
		{"interface", "vlan+,eni+,vlan+", "\n  - vlan+\n  - eni+\n  - vlan+", func(c *Config) { c.Interfaces = patterns(t, "vlan+", "eni+") }},
		{"layers", "route", "[route]", func(c *Config) { c.Layers = []string{"route"} }},
		{"layers", "route,iptables,route", "[route, iptables, route]", func(c *Config) { c.Layers = []string{"route", "iptables"} }},
		{"backend", "auto", "", func(*Config) {}},
		{"backend", "nft", "", func(c *Config) { c.Backend = rules.NFT }},
		{"backend", "legacy", `"legacy"`, func(c *Config) { c.Backend = rules.Legacy }},
		{"verdict", "reject", "", func(c *Config) { c.Verdict = policy.Reject }},
		{"resync-period", "100ms", "", func(c *Config) { c.Resync = 100 * time.Millisecond }},
		{"host-network-pods", "audit", "", func(c *Config) { c.HostNetwork = policy.Audit }},
		{"host-network-namespaces", "a,b", "[a, b]", func(c *Config) { c.HostNamespaces = []string{"a", "b"} }},
		{"mode", "audit", "", func(c *Config) { c.Mode = policy.AuditOnly }},
		{"attribution", "off", "", func(c *Config) { c.Attribution = false }},
		{"attribution", "on", "", func(*Config) {}},
		{"probe-interval", "10s", "", func(c *Config) { c.ProbeInterval = 10 * time.Second }},
		{"probe-interval", "24h", "", func(c *Config) { c.ProbeInterval = 24 * time.Hour }},
		{"resync-period", "1h", "", func(c *Config) { c.Resync = time.Hour }},
		{"metrics-bind-address", "off", "", func(c *Config) { c.MetricsAddress = "" }},
		{"metrics-bind-address", "127.0.0.1:0", "", func(c *Config) { c.MetricsAddress = "127.0.0.1:0" }},
		{"metrics-bind-address", "[::1]:65535", `"[::1]:65535"`, func(c *Config) { c.MetricsAddress = "[::1]:65535" }},
		{"health-bind-address", ":9168", "", func(c *Config) { c.HealthAddress = ":9168" }},
		{"web-config-file", "/some/file", "", func(c *Config) { c.WebConfigFile = "/some/file" }},
		{"kubernetes", "on", "", func(c *Config) { c.Kubernetes = On }},
		{"kubernetes", "off", "", func(c *Config) { c.Kubernetes = Off }},
		{"kubeconfig", "/some/file", "", func(c *Config) { c.Kubeconfig = "/some/file" }},
		{"node-name", "n", "", func(c *Config) { c.NodeName = "n" }},
		{"log-level", "debug", "", func(c *Config) { c.LogLevel = slog.LevelDebug }},
		{"log-level", "error", "", func(c *Config) { c.LogLevel = slog.LevelError }},
		{"log-format", "json", "", func(c *Config) { c.LogFormat = "json" }},
		{"log-format", "text", "", func(c *Config) { c.LogFormat = "text" }},
	} {
		want := defaults(t)
		c.change(&want)
		in := c.file
		if in == "" {
			in = c.value
		}
		for how, got := range map[string]func() (Config, error){
			"by the flag": func() (Config, error) { return load(t, "", "--"+c.flag, c.value) },
			"by the file": func() (Config, error) { return load(t, c.flag+": "+in+"\n") },
		} {
			if got, err := got(); err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s %s %s: %+v, %v, want %+v", c.flag, c.value, how, got, err, want)
			}
		}
	}
}

// What the flags, the file and the environment give together.
func TestLoad(t *testing.T) {
	for _, c := range []struct {
		name   string
		env    string // NODE_NAME
		host   string // KUBERNETES_SERVICE_HOST
		file   string
		args   []string
		change func(*Config)
	}{
		{name: "nothing is given", change: func(*Config) {}},
		{name: "an empty file", file: " \n", change: func(*Config) {}},
		{name: "in a pod", env: "ip-10-0-0-1", host: "10.100.0.1", change: func(c *Config) { c.NodeName, c.LogFormat = "ip-10-0-0-1", "json" }},
		{name: "a flag against the environment", env: "ip-10-0-0-1", host: "10.100.0.1", args: []string{"--node-name", "n", "--log-format", "text"},
			change: func(c *Config) { c.NodeName = "n" }},
		{name: "a flag against the file", file: "verdict: reject\ninterface: [a, b]\nresync-period: 5s\n",
			args:   []string{"--verdict", "drop", "--interface", "c"},
			change: func(c *Config) { c.Interfaces, c.Resync = patterns(t, "c"), 5*time.Second }},
		{name: "a flag that repeats the default, against the file", file: "backend: nft\n", args: []string{"--backend", "auto"}, change: func(*Config) {}},
		{name: "one flag twice", args: []string{"--interface", "a", "--interface", "b,c"}, change: func(c *Config) { c.Interfaces = patterns(t, "a", "b", "c") }},
		{name: "both have any free port", args: []string{"--metrics-bind-address", ":0", "--health-bind-address", ":0"},
			change: func(c *Config) { c.MetricsAddress, c.HealthAddress = ":0", ":0" }},
		{name: "health without metrics", args: []string{"--metrics-bind-address", "off", "--health-bind-address", ":9169"},
			change: func(c *Config) { c.MetricsAddress, c.HealthAddress = "", ":9169" }},
	} {
		outside(t)
		t.Setenv("NODE_NAME", c.env)
		t.Setenv("KUBERNETES_SERVICE_HOST", c.host)
		want := defaults(t)
		c.change(&want)
		if got, err := load(t, c.file, c.args...); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v, want %+v", c.name, got, err, want)
		}
	}
}

// Each problem is reported on a line of its own that names the setting and the fix.
func TestWrongSettings(t *testing.T) {
	outside(t)
	for _, c := range []struct {
		args, file string
		want       []string // a part of each line
	}{
		{"--interface=", "", []string{"--interface: no pattern is given; give at least one"}},
		{"--interface=a,+,b/,c", "", []string{"--interface: + alone", `--interface: "b/"`}},
		{"--layers=", "", []string{"--layers: no layer is given; use iptables,route,cgroup"}},
		{"--layers=iptables,y,x", "", []string{`--layers: "y" is not valid; use iptables,route,cgroup`, `--layers: "x" is not valid`}},
		{"--layers=cgroup", "", []string{"--layers: cgroup alone stops sockets but closes no path; add iptables,route"}},
		{"--layers=iptables,route --pods-cgroup=/x", "", []string{"--pods-cgroup: only the cgroup layer uses it; add that to --layers, or leave"}},
		{"--layers=route,cgroup --pods-cgroup=kubepods", "", []string{`--pods-cgroup: "kubepods" is not an absolute path; use one, such as /sys/`}},
		{"--backend=ebpf", "", []string{`--backend: "ebpf" is not valid; use auto, nft or legacy`}},
		{"--verdict=reject --layers=route", "", []string{"--verdict: only the iptables layer can answer with reject; add it to --layers"}},
		{"--verdict=accept", "", []string{`--verdict: "accept" is not valid; use drop or reject`}},
		{"--host-network-pods=deny", "", []string{`--host-network-pods: "deny" is not valid; use allow, audit or block`}},
		{"--host-network-pods=block --layers=route", "", []string{"--host-network-pods: only the cgroup layer can refuse them; add it to"}},
		{"--host-network-namespaces=A", "", []string{`--host-network-namespaces: "A" is not a valid namespace name: a lowercase`}},
		{"--host-network-namespaces=a --host-network-pods=block --kubernetes=off", "",
			[]string{"--host-network-namespaces: without the API, a pod's namespace is not known; leave out"}},
		{"--mode=dry-run", "", []string{`--mode: "dry-run" is not valid; use enforce or audit`}},
		{"--mode=audit --layers=iptables,route", "", []string{"--mode: only the cgroup layer can see who asks without blocking; add it to --layers"}},
		{"--attribution=off --mode=audit", "", []string{"--attribution: with off, audit mode has nothing to report; leave out --attribution or --mode"}},
		{"--attribution=yes", "", []string{`--attribution: "yes" is not valid; use on or off`}},
		{"--probe-interval=9s", "", []string{"--probe-interval: 9s is out of range; use 10s to 24h0m0s, or 0 for never"}},
		{"--probe-interval=25h", "", []string{"--probe-interval: 25h0m0s is out of range"}},
		{"--probe-interval=-1s", "", []string{"--probe-interval: -1s is out of range"}},
		{"--resync-period=99ms", "", []string{"--resync-period: 99ms is out of range; use 100ms to 1h0m0s"}},
		{"--resync-period=1h1ms", "", []string{"--resync-period: 1h0m0.001s is out of range"}},
		{"--kubernetes=yes", "", []string{`--kubernetes: "yes" is not valid; use auto, on or off`}},
		{"--metrics-bind-address=9169", "", []string{"--metrics-bind-address: address 9169: missing port in address; use host:port, :port or off"}},
		{"--metrics-bind-address=", "", []string{"--metrics-bind-address: missing port in address"}},
		{"--metrics-bind-address=:http", "", []string{`--metrics-bind-address: "http" is not a port number`}},
		{"--metrics-bind-address=:65536", "", []string{`--metrics-bind-address: "65536" is not a port number`}},
		{"--metrics-bind-address=:-1", "", []string{`--metrics-bind-address: "-1" is not a port number`}},
		{"--health-bind-address=9168", "", []string{"--health-bind-address: address 9168: missing port in address; use host:port or :port"}},
		{"--health-bind-address=off", "", []string{"--health-bind-address: address off: missing port"}},
		{"--health-bind-address=127.0.0.1:9169", "", []string{"--health-bind-address: 127.0.0.1:9169 uses the same port as the metrics"}},
		{"--metrics-bind-address=off --web-config-file=/x", "", []string{"--web-config-file: there are no metrics to protect"}},
		{"--log-level=loud", "", []string{`--log-level: "loud" is not valid; use debug, info, warn or error`}},
		{"--log-format=xml", "", []string{`--log-format: "xml" is not valid; use text or json`}},
		{"--backend=x --verdict=y --log-format=z", "", []string{"--backend", "--verdict", "--log-format"}},

		{"--config=/does/not/exist", "", []string{"--config: reading the file: open /does/not/exist: no such file"}},
		{"", "verdict: [drop\n", []string{"config.yaml: yaml: line "}},
		{"", "verdict: drop\n---\nverdict: reject\n", []string{"it has more than one document; keep one"}},
		{"", "verdict: drop\n---\n[broken\n", []string{"it has more than one document; keep one"}},
		{"", "- verdict\n", []string{"config.yaml:1: write settings as `name: value`"}},
		{"", "drop\n", []string{"config.yaml:1: write settings as `name: value`"}},
		{"", "verdict: drop\ninterfaces: [a]\n", []string{`config.yaml:2: "interfaces" is not a setting; use attribution, backend, health-bind-address, host-network-namespaces, `}},
		{"", "config: other.yaml\n", []string{`config.yaml:1: "config" is not a setting`}},
		{"", "resync-period: 5s\n\nresync-period: 6s\n", []string{"config.yaml:3: resync-period is set twice; keep one"}},
		{"", "interface: {a: 1}\n", []string{"config.yaml:1: interface: write a value, or a list of values"}},
		{"", "interface: [[a]]\n", []string{"config.yaml:1: interface: write a value, or a list of values"}},
		{"", "resync-period: 5\n", []string{"config.yaml:1: resync-period: "}},
		{"", "verdict: accept\n", []string{`--verdict: "accept" is not valid`}},
		{"", "interface:\n", []string{"--interface: no pattern is given"}},
		// A flag wins, but what is written beside it has to be right all the same.
		{"--resync-period=5s", "interface: {a: 1}\nresync-period: [[]]\nx: 1\n",
			[]string{"config.yaml:1: interface: ", "config.yaml:2: resync-period: ", `config.yaml:3: "x" is not a setting`}},
	} {
		_, err := load(t, c.file, strings.Fields(c.args)...)
		if err == nil {
			t.Errorf("%s %q: no error", c.args, c.file)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(c.want) {
			t.Errorf("%s %q: %d lines, want %d:\n%v", c.args, c.file, len(lines), len(c.want), err)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%s %q: %q, want %q", c.args, c.file, lines[i], want)
			}
		}
	}
}

func TestPolicyOfConfig(t *testing.T) {
	c := Config{Interfaces: patterns(t, "eni+", "vlan+"), Verdict: policy.Reject}
	if got := c.Policy().String(); got != "eni+,vlan+ reject" {
		t.Errorf("%q", got)
	}
}

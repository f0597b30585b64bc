// Package config turns flags and a YAML file into a checked configuration.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// Config is a valid configuration.
type Config struct {
	// Interfaces has at least one pattern and no duplicates.
	Interfaces []ifpattern.Pattern
	// Layers has at least one name and no duplicates.
	Layers []string
	// PodsCgroup is the cgroup v2 directory below which pods live; empty if it is to be detected.
	PodsCgroup string

	// Mode says whether anything is stopped at all.
	Mode    policy.Mode
	Backend rules.Backend
	Verdict policy.Verdict
	Resync  time.Duration
	// Attribution: pods that ask are named, from the API server's list of the node's pods.
	Attribution bool
	// HostNetwork is what happens to the sockets of hostNetwork pods; those in HostNamespaces are let through in any case.
	HostNetwork    policy.HostNetwork
	HostNamespaces []string
	// ProbeInterval is how often to probe; 0 for never.
	ProbeInterval time.Duration
	// MetricsAddress is empty if the endpoints are off.
	MetricsAddress string
	// HealthAddress is empty if /healthz and /readyz are served where the metrics are.
	HealthAddress string
	// WebConfigFile is the file that says how MetricsAddress is protected; empty for no protection.
	WebConfigFile string
	Kubernetes    Use
	// Kubeconfig is the file that says how to reach the API server; empty for a pod's service account.
	Kubeconfig string
	// NodeName is the name of the Node object; empty if it is not set.
	NodeName string
	LogLevel slog.Level
	// LogFormat is text or json.
	LogFormat string
}

// Policy returns the policy that the configuration asks for.
func (c Config) Policy() policy.Policy {
	return policy.New(c.Interfaces, c.Verdict).WithHostNetwork(c.HostNetwork).WithMode(c.Mode)
}

// layers are the names of all layers, which is also the default. packetLayers are those that close a path by themselves.
var (
	layers       = []string{rules.LayerName, route.LayerName, cgroup.LayerName}
	packetLayers = layers[:2]
)

// The bounds of the resync period: with a shorter one, looking costs more than repairing; with a longer one, "at the latest"
// means nothing.
const (
	minResync = 100 * time.Millisecond
	maxResync = time.Hour
)

// The bounds of the interval between probes, each of which creates an interface for a moment.
const (
	minProbeInterval = 10 * time.Second
	maxProbeInterval = 24 * time.Hour
)

const (
	on  = "on"
	off = "off"
)

// hostNamespaces is a flag whose actual default is more than its default value says.
const hostNamespaces = "host-network-namespaces"

// namespaceFile is where the kubelet tells a pod its namespace (kubernetes.io/docs, "Accessing the API from a Pod").
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// ownNamespace returns the agent's own namespace, if it is a pod with a token.
func ownNamespace() []string {
	name, err := os.ReadFile(namespaceFile)
	if err != nil {
		return nil
	}
	return []string{strings.TrimSpace(string(name))}
}

// Use says whether the Kubernetes API is used.
type Use string

const (
	// Auto: in a cluster, and with a kubeconfig.
	Auto Use = "auto"
	On   Use = on
	Off  Use = off
)

var uses = []Use{Auto, On, Off}

// Options are the settings as the user wrote them.
type Options struct {
	file           string
	interfaces     []string
	layers         []string
	podsCgroup     string
	hostNetwork    string
	hostNamespaces []string
	mode           string
	attribution    string
	backend        string
	verdict        string
	resync         time.Duration
	probeInterval  time.Duration
	metricsAddress string
	healthAddress  string
	webConfigFile  string
	kubernetes     string
	kubeconfig     string
	nodeName       string
	logLevel       string
	logFormat      string

	flags *pflag.FlagSet
}

// NewOptions returns the defaults.
func NewOptions() *Options {
	o := &Options{flags: pflag.NewFlagSet("settings", pflag.ContinueOnError)}
	f := o.flags
	f.StringSliceVar(&o.interfaces, "interface", []string{"eni+"},
		"pod-side interface `pattern` in iptables syntax (a trailing + is a wildcard); repeat the flag, or separate with commas")
	f.StringSliceVar(&o.layers, "layers", layers,
		"the `layers` to keep in force, separated by commas; each may stop what another lets through")
	f.StringVar(&o.podsCgroup, "pods-cgroup", "",
		"the cgroup v2 `directory` below which pods live, for the cgroup layer (default: detected)")
	f.StringVar(&o.hostNetwork, "host-network-pods", string(policy.Allow),
		"what the cgroup layer does with the sockets of hostNetwork pods: "+alternatives(policy.HostNetworks))
	f.StringSliceVar(&o.hostNamespaces, hostNamespaces, []string{"kube-system"},
		"`namespaces` whose hostNetwork pods are let through (default: kube-system and the agent's own; a list replaces both)")
	f.StringVar(&o.mode, "mode", string(policy.Enforce),
		"enforce, or audit: block nothing, but count and report who would be blocked; audit needs the cgroup layer and --attribution=on")
	f.StringVar(&o.attribution, "attribution", on,
		"on: name the pods that ask in metrics, log, events and the report; off: don't look pods up")
	f.StringVar(&o.backend, "backend", string(rules.Auto), "which iptables backend to use: "+alternatives(rules.Backends))
	f.StringVar(&o.verdict, "verdict", string(policy.Drop),
		"what happens to a pod's packets: drop, or reject (tcp-reset for TCP, an ICMP error for the rest)")
	f.DurationVar(&o.resync, "resync-period", 10*time.Second,
		"the longest that drift can go unnoticed, whatever events are lost")
	f.DurationVar(&o.probeInterval, "probe-interval", 0,
		"how often to send a probe, as a pod would, and check that it is stopped; 0 for never")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", ":9169",
		"`address` of /metrics, /healthz and /readyz; off turns them off")
	f.StringVar(&o.healthAddress, "health-bind-address", "",
		"`address` of /healthz and /readyz alone, always plain HTTP (default: served with the metrics only)")
	f.StringVar(&o.webConfigFile, "web-config-file", "",
		"`file` that turns on TLS and authentication for the metrics, as for every Prometheus exporter")
	f.StringVar(&o.kubernetes, "kubernetes", string(Auto),
		"whether to use the Kubernetes API (taint, condition, events): auto (in a cluster, or with --kubeconfig), on or off")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "kubeconfig `file` for reaching the API server (default: the pod's service account)")
	f.StringVar(&o.nodeName, "node-name", "", "`name` of this node's Node object (default: the environment variable NODE_NAME)")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "", "text or json (default: json in a cluster, else text)")
	return o
}

// AddTo adds the flags to a command.
func (o *Options) AddTo(flags *pflag.FlagSet) {
	flags.AddFlagSet(o.flags)
	flags.StringVar(&o.file, "config", "", "YAML `file` with the same settings, keyed by flag name; flags given on the command line win")
}

// Load reads the file, if there is one, and checks everything. The error has a line for each problem that names the setting and
// the fix.
func (o *Options) Load() (Config, error) {
	if o.file != "" {
		if err := o.readFile(); err != nil {
			return Config{}, err
		}
	}
	c := Config{
		Mode:    policy.Mode(o.mode),
		Backend: rules.Backend(o.backend),
		Verdict: policy.Verdict(o.verdict),
		Resync:  o.resync,

		Attribution:   o.attribution == on,
		PodsCgroup:    o.podsCgroup,
		HostNetwork:   policy.HostNetwork(o.hostNetwork),
		ProbeInterval: o.probeInterval,
		HealthAddress: o.healthAddress,
		WebConfigFile: o.webConfigFile,
		Kubernetes:    Use(o.kubernetes),
		Kubeconfig:    o.kubeconfig,
		NodeName:      cmp.Or(o.nodeName, os.Getenv("NODE_NAME")),
	}
	var errs []error
	wrong := func(flag, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s: %w", flag, fmt.Errorf(format, args...)))
	}
	for _, text := range o.interfaces {
		p, err := ifpattern.Parse(text)
		switch {
		case err != nil:
			wrong("interface", "%w", err)
		case !slices.Contains(c.Interfaces, p):
			c.Interfaces = append(c.Interfaces, p)
		}
	}
	if len(o.interfaces) == 0 {
		wrong("interface", "no pattern is given; give at least one, such as eni+")
	}
	for _, name := range o.layers {
		switch {
		case !slices.Contains(layers, name):
			wrong("layers", "%q is not valid; use %s", name, strings.Join(layers, ","))
		case !slices.Contains(c.Layers, name):
			c.Layers = append(c.Layers, name)
		}
	}
	if len(o.layers) == 0 {
		wrong("layers", "no layer is given; use %s", strings.Join(layers, ","))
	} else if slices.Equal(c.Layers, []string{cgroup.LayerName}) {
		wrong("layers", "%s alone stops sockets but closes no path; add %s", cgroup.LayerName, strings.Join(packetLayers, ","))
	}
	if c.PodsCgroup != "" && !filepath.IsAbs(c.PodsCgroup) {
		wrong("pods-cgroup", "%q is not an absolute path; use one, such as /sys/fs/cgroup/kubepods.slice", c.PodsCgroup)
	} else if c.PodsCgroup != "" && !slices.Contains(c.Layers, cgroup.LayerName) {
		wrong("pods-cgroup", "only the %s layer uses it; add that to --layers, or leave out --pods-cgroup", cgroup.LayerName)
	}
	if !slices.Contains(policy.HostNetworks, c.HostNetwork) {
		wrong("host-network-pods", "%q is not valid; use %s", o.hostNetwork, alternatives(policy.HostNetworks))
	} else if c.HostNetwork != policy.Allow && !slices.Contains(c.Layers, cgroup.LayerName) {
		wrong("host-network-pods", "only the %s layer can refuse them; add it to --layers, or leave out --host-network-pods", cgroup.LayerName)
	}
	for _, name := range o.hostNamespaces {
		if problems := validation.IsDNS1123Label(name); len(problems) > 0 {
			wrong(hostNamespaces, "%q is not a valid namespace name: %s", name, problems[0])
		}
	}
	if c.HostNetwork == policy.Block && c.Kubernetes == Off && o.flags.Changed(hostNamespaces) {
		wrong(hostNamespaces, "without the API, a pod's namespace is not known; leave out this flag, or --kubernetes=off")
	}
	if c.HostNamespaces = o.hostNamespaces; !o.flags.Changed(hostNamespaces) {
		c.HostNamespaces = append(c.HostNamespaces, ownNamespace()...)
	}
	if !slices.Contains(policy.Modes, c.Mode) {
		wrong("mode", "%q is not valid; use %s", o.mode, alternatives(policy.Modes))
	} else if c.Mode == policy.AuditOnly && !slices.Contains(c.Layers, cgroup.LayerName) {
		wrong("mode", "only the %s layer can see who asks without blocking; add it to --layers, or leave out --mode", cgroup.LayerName)
	}
	if o.attribution != on && o.attribution != off {
		wrong("attribution", "%q is not valid; use on or off", o.attribution)
	} else if c.Mode == policy.AuditOnly && !c.Attribution {
		wrong("attribution", "with off, audit mode has nothing to report; leave out --attribution or --mode")
	}
	if !slices.Contains(rules.Backends, c.Backend) {
		wrong("backend", "%q is not valid; use %s", o.backend, alternatives(rules.Backends))
	}
	if !slices.Contains(policy.Verdicts, c.Verdict) {
		wrong("verdict", "%q is not valid; use %s", o.verdict, alternatives(policy.Verdicts))
	} else if c.Verdict == policy.Reject && !slices.Contains(c.Layers, rules.LayerName) {
		wrong("verdict", "only the %s layer can answer with reject; add it to --layers, or leave out --verdict", rules.LayerName)
	}
	if c.Resync < minResync || c.Resync > maxResync {
		wrong("resync-period", "%s is out of range; use %s to %s", c.Resync, minResync, maxResync)
	}
	if p := c.ProbeInterval; p != 0 && (p < minProbeInterval || p > maxProbeInterval) {
		wrong("probe-interval", "%s is out of range; use %s to %s, or 0 for never", p, minProbeInterval, maxProbeInterval)
	}
	if !slices.Contains(uses, c.Kubernetes) {
		wrong("kubernetes", "%q is not valid; use %s", o.kubernetes, alternatives(uses))
	}
	if o.metricsAddress != off {
		c.MetricsAddress = o.metricsAddress
		if err := checkAddress(o.metricsAddress); err != nil {
			wrong("metrics-bind-address", "%w; use host:port, :port or off", err)
		}
	}
	if c.HealthAddress != "" {
		if err := checkAddress(c.HealthAddress); err != nil {
			wrong("health-bind-address", "%w; use host:port or :port", err)
		} else if port(c.HealthAddress) == port(c.MetricsAddress) && port(c.HealthAddress) != "0" {
			wrong("health-bind-address", "%s uses the same port as the metrics; leave it out, or use another port", c.HealthAddress)
		}
	}
	if c.WebConfigFile != "" && c.MetricsAddress == "" {
		wrong("web-config-file", "there are no metrics to protect; leave it out, or set --metrics-bind-address")
	}
	if err := c.LogLevel.UnmarshalText([]byte(o.logLevel)); err != nil {
		wrong("log-level", "%q is not valid; use debug, info, warn or error", o.logLevel)
	}
	switch c.LogFormat = o.logFormat; c.LogFormat {
	case "text", "json":
	case "":
		c.LogFormat = defaultLogFormat()
	default:
		wrong("log-format", "%q is not valid; use text or json", o.logFormat)
	}
	return c, errors.Join(errs...)
}

// defaultLogFormat recognises a cluster by the variable that the kubelet sets in every container.
func defaultLogFormat() string {
	if os.Getenv("KUBERNETES_SERVICE_HOST") != "" {
		return "json"
	}
	return "text"
}

func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("%q is not a port number", port)
	}
	return nil
}

// port returns an address's port, or nothing.
func port(address string) string {
	_, port, _ := net.SplitHostPort(address)
	return port
}

// alternatives writes "a, b or c".
func alternatives[S ~string](values []S) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = string(v)
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " or " + words[last]
}

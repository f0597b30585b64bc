// Bad input: one clear line, exit 2, and nothing changed on the node.

package agent

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/rules"
)

func TestBadInput(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubeconfig := file("good.conf", "clusters: [{name: c, cluster: {server: https://127.0.0.1:1}}]\n"+
		"contexts: [{name: c, context: {cluster: c}}]\ncurrent-context: c\n")
	unchanged := "nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names; ls -A /run"
	before := n.sh("%s", unchanged)
	for _, c := range []struct {
		args string
		want string // in the message: the field, and the fix
	}{
		{"run --interfaces eni+", "unknown flag: --interfaces"},
		{"run --interface=", "--interface: no pattern is given; give at least one, such as eni+"},
		{"run --interface eni+,,vlan+", "--interface: the pattern is empty"},
		{"run --interface sixteen-bytes-xx", "--interface: \"sixteen-bytes-xx\" has 16 characters"},
		{"run --interface en/i", "--interface: \"en/i\" contains '/'"},
		{"run --interface +", "--interface: + alone"},
		{"run --interface e+ni", "--interface: \"e+ni\""},
		{"run --interface !eni+", "--interface: \"!eni+\""},
		{"run --verdict accept", "--verdict: \"accept\" is not valid; use drop or reject"},
		{"run --backend ebpf", "--backend: \"ebpf\" is not valid; use auto, nft or legacy"},
		{"run --resync-period 0s", "--resync-period: 0s is out of range; use 100ms to 1h"},
		{"run --resync-period soon", "--resync-period"},
		{"run --metrics-bind-address 9169", "--metrics-bind-address: address 9169: missing port in address; use host:port"},
		{"run --metrics-bind-address :http-ish", "--metrics-bind-address"},
		{"run --kubernetes yes", "--kubernetes: \"yes\" is not valid; use auto, on or off"},
		{"run --kubernetes on --node-name n", "--kubernetes: on needs a pod with a service account token, or --kubeconfig; otherwise use off"},
		{"run --kubernetes on --kubeconfig " + kubeconfig, "--node-name: --kubernetes=on needs it; give it, or set NODE_NAME"},
		{"run --kubeconfig /does/not/exist", "--kubeconfig: reading /does/not/exist"},
		{"run --kubeconfig " + file("broken.conf", "clusters: {}\n"), "--kubeconfig: reading"},
		{"run --node-name Node_1 --kubeconfig " + kubeconfig, "--node-name: \"Node_1\" (or NODE_NAME) is not a valid node name"},
		{"run --health-bind-address 9168", "--health-bind-address: address 9168: missing port in address; use host:port"},
		{"run --metrics-bind-address off --web-config-file /x", "--web-config-file: there are no metrics to protect"},
		{"run --health-bind-address :9169", "--health-bind-address: :9169 uses the same port as the metrics"},
		{"run --web-config-file /does/not/exist", "--web-config-file: reading /does/not/exist"},
		{"run --web-config-file " + file("web.yml", "basic_auth: {}\n"), "--web-config-file: reading"},
		{"run --log-level loud", "--log-level: \"loud\" is not valid; use debug, info, warn or error"},
		{"run --log-format xml", "--log-format: \"xml\" is not valid; use text or json"},
		{"run --config /does/not/exist", "--config: reading the file: open /does/not/exist: no such file"},
		{"run --config " + dir, "--config: reading the file"},
		{"run --config " + file("unknown.yaml", "verdict: drop\ninterfaces: [eni+]\n"), "unknown.yaml:2: \"interfaces\" is not a setting; use attribution, backend, health-bind-address, host-network-namespaces, "},
		{"run --config " + file("twice.yaml", "verdict: drop\nverdict: reject\n"), "twice.yaml"},
		{"run --config " + file("two.yaml", "verdict: drop\n---\nverdict: reject\n"), "two.yaml: it has more than one document"},
		{"run --config " + file("nested.yaml", "interface: {eni: 1}\n"), "nested.yaml:1: interface: write a value, or a list of values"},
		{"run --config " + file("list.yaml", "- verdict\n"), "list.yaml:1: write settings as"},
		{"run --config " + file("broken.yaml", "verdict: [drop\n"), "--config: parsing"},
		{"run --config " + file("value.yaml", "verdict: accept\n"), "--verdict: \"accept\" is not valid"},
		{"run --config " + file("duration.yaml", "resync-period: 5\n"), "duration.yaml:1: resync-period"},
		{"run now", "unknown command \"now\""},
		{"enforce", "unknown command \"enforce\""},
		{"check --verdict accept", "--verdict: \"accept\" is not valid"},
		{"check -o yaml", "--output: \"yaml\" is not valid; use text or json"},
		{"cleanup --interface=", "--interface: no pattern"},
		{"rules --backend x", "--backend: \"x\" is not valid"},
	} {
		code, stdout, stderr := n.guard(strings.Fields(c.args)...)
		if code != 2 || strings.Count(stderr, "\n") != 1 || stdout != "" || !strings.Contains(stderr, c.want) {
			t.Errorf("%s: exit %d, want 2 and one line with %q:\n%s%s", c.args, code, c.want, stdout, stderr)
		}
	}
	if after := n.sh("%s", unchanged); after != before {
		t.Errorf("the node changed from\n%s\nto\n%s", before, after)
	}
}

// Every problem is said at once, a line each.
func TestEveryProblemIsSaid(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	code, _, stderr := n.guard("run", "--verdict", "x", "--backend", "y", "--interface", "+,a/b")
	if code != 2 || strings.Count(stderr, "\n") != 4 {
		t.Errorf("exit %d:\n%s", code, stderr)
	}
}

func TestNoRight(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	// The program must be where everybody may run it.
	public := filepath.Join(os.TempDir(), filepath.Base(filepath.Dir(binary))+"-public")
	if out, err := exec.Command("install", "-m", "755", binary, public).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { os.Remove(public) })
	for _, command := range []string{"run", "check", "cleanup"} {
		cmd := n.Command(t.Context(), "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", public, command)
		if code, _, stderr := run(t, cmd); code != 2 || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "CAP_NET_ADMIN") {
			t.Errorf("%s: exit %d: %s", command, code, stderr)
		}
	}
	if left := n.sh("nft list ruleset"); left != "" {
		t.Errorf("rules were made: %s", left)
	}
	// What needs no privilege works without.
	cmd := n.Command(t.Context(), "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", public, "rules")
	if code, stdout, stderr := run(t, cmd); code != 0 || !strings.Contains(stdout, variants[0].ours()) {
		t.Errorf("rules: exit %d: %s%s", code, stdout, stderr)
	}
}

// A file has the same settings as the flags, and a flag wins.
func TestConfigFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "config.yaml")
	text := "# all of them\ninterface: [eni+, vlan+]\nbackend: nft\nverdict: reject\nresync-period: 5s\n" +
		"metrics-bind-address: off\nkubernetes: off\nlog-level: warn\nlog-format: json\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	rulesOf := func(args ...string) string {
		code, stdout, stderr := run(t, exec.Command(binary, append([]string{"rules", "--config", path}, args...)...))
		if code != 0 {
			t.Fatalf("exit %d: %s", code, stderr)
		}
		return stdout
	}
	if got := rulesOf(); strings.Count(got, "tcp-reset") != 4 || strings.Count(got, "vlan+") != 4 {
		t.Errorf("rules by the file:\n%s", got)
	}
	if got := rulesOf("--verdict", "drop", "--interface", "cali+"); strings.Count(got, "-i cali+ -j DROP") != 2 || strings.Contains(got, "eni+") {
		t.Errorf("rules by the flags:\n%s", got)
	}
}

// What `rules` prints is what the kernel then has, and what iptables-restore takes.
func TestRulesAreWhatIsEnforced(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		n := newNode(t)
		flags := []string{"--interface", "eni+,vlan+", "--verdict", "reject"}
		_, stdout, _ := n.guard(append([]string{"rules"}, flags...)...)
		n.startReady(append(flags, "--backend", string(v.backend))...)
		_, block, found := strings.Cut(stdout, "# "+string(v.family)+"\n")
		if !found {
			t.Fatalf("no block for %s in\n%s", v.family, stdout)
		}
		block, _, _ = strings.Cut(block, "# ")
		if want := "*filter\n" + strings.Join(n.forward(v), "\n") + "\nCOMMIT\n"; block != want {
			t.Errorf("%s: rules prints\n%s\nthe kernel has\n%s", v, block, want)
		}
		n.sh("cat <<'E' | %s-restore --noflush --test\n%sE", v.iptables(), block)
	}
}

func TestCheckJSON(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	look := func(wantCode int) (result struct {
		Protected bool
		Families  []struct {
			Family, State string
			Rules         []string
		}
	}) {
		t.Helper()
		code, stdout, _ := n.guard("check", "--backend", "nft", "-o", "json")
		if err := json.NewDecoder(bytes.NewBufferString(stdout)).Decode(&result); err != nil || code != wantCode {
			t.Fatalf("exit %d, want %d; %v:\n%s", code, wantCode, err, stdout)
		}
		return result
	}
	if r := look(1); r.Protected || len(r.Families) != 2 || r.Families[0].State != "missing" || r.Families[0].Rules == nil {
		t.Errorf("on an empty node: %+v", r)
	}
	n.startReady("--backend", "nft").kill()
	if r := look(0); !r.Protected || r.Families[1].Family != "ipv6" || r.Families[1].Rules[0] != variants[1].ours() {
		t.Errorf("on a protected node: %+v", r)
	}
	n.sh("iptables-nft -I FORWARD -j ACCEPT")
	if r := look(1); r.Protected || r.Families[0].State != "shadowed" || r.Families[1].State != "enforced" {
		t.Errorf("on a node with an accept above: %+v", r)
	}
	n.sh("iptables-nft -D FORWARD 1; iptables-nft -I FORWARD -j LOG")
	if r := look(0); r.Families[0].State != "displaced" {
		t.Errorf("on a node with a log above: %+v", r)
	}
}

// A port that is in use: the rules are installed, the error is logged once, and the port is bound when it is free.
func TestMetricsPortTaken(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	l, err := n.Host().Listen("tcp", "127.0.0.1:9169")
	if err != nil {
		t.Fatal(err)
	}
	a := n.start("--backend", string(rules.NFT))
	eventually(t, "the rules are in", func() bool { return n.onTop(variants[0]) && n.onTop(variants[1]) })
	eventually(t, "the error is said", func() bool { return a.log.Count("level=ERROR", "address already in use") == 1 })
	l.Close()
	eventually(t, "the agent is ready", a.ready)
	if lines := a.log.Count("level=ERROR"); lines != 1 {
		t.Errorf("%d errors in the log", lines)
	}
}

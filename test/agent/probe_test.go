package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	guarding "github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/imds"
)

// rewriteSources makes the node one whose packets are answered, whoever sent them: Amazon VPC CNI does so, too.
const rewriteSources = "for t in iptables-nft ip6tables-nft; do $t -t nat -A POSTROUTING -o eth0 -j MASQUERADE; done"

// probed is the part of check's output that is about probes.
type probed struct {
	Protected bool
	Probes    []guarding.Probe
}

// checkProbe is `check --probe` in a pod of the node.
func (n *node) checkProbe(args ...string) (code int, c probed) {
	n.t.Helper()
	args = append([]string{"check", "--probe", "-o", "json", "--backend", "nft", "--layers", n.layers}, args...)
	cmd := n.Command(context.Background(), binary, args...)
	container, err := n.InContainer(cmd)
	if err != nil {
		n.t.Fatal(err)
	}
	defer container.Close()
	code, stdout, stderr := run(n.t, cmd)
	if err := json.Unmarshal([]byte(stdout), &c); err != nil {
		n.t.Fatalf("check --probe ends with %d and says %q %s", code, stdout, stderr)
	}
	return code, c
}

// Whatever layer is taken away, a probe says which layers stopped it, or that none did, and leaves nothing behind.
func TestCheckProbe(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	n.sh(rewriteSources)
	links := n.sh("ip -o link | wc -l; ip route; ip -6 route | wc -l")
	must := func(when string, code int, want ...string) {
		t.Helper()
		got, c := n.checkProbe(extra...)
		var texts []string
		for _, p := range c.Probes {
			text := p.String()
			if p.Result == "answered" { // or seen to leave, if the answer takes too long
				text, _, _ = strings.Cut(text, ":")
			}
			texts = append(texts, text)
		}
		if text := strings.Join(texts, "\n"); got != code || text != strings.Join(want, "\n") || c.Protected != (code == 0) {
			t.Errorf("%s: check --probe ends with %d (protected %t), want %d, and says\n%s\nwant\n%s", when, got, c.Protected, code, text, strings.Join(want, "\n"))
		}
	}
	// That no socket is refused without the layer is known without a try.
	answered := []string{"forward ipv4 answered", "forward ipv6 answered"}
	must("without a guard", 1, answered...)
	if now := n.sh("ip -o link | wc -l; ip route; ip -6 route | wc -l"); now != links {
		t.Errorf("before the probe there were\n%s, after it\n%s", links, now)
	}
	a := n.startReady(append(extra, "--backend", "nft")...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	a.kill()
	sockets := []string{"socket ipv4 stopped by cgroup", "socket ipv6 stopped by cgroup"}
	// That packets get into the sink, and no further, only Linux 6.12 and later count.
	counts := !strings.HasPrefix(n.sh("uname -r"), "6.1.")
	byRoute, unnamed := "stopped by route", "stopped by route"
	if !counts {
		byRoute, unnamed = "error: no layer counted it, and no answer came", "stopped: it was not seen leaving the node"
	}
	packets := func(forward string) (list []string) {
		for _, f := range imds.Families {
			list = append(list, fmt.Sprintf("forward %s %s", f, forward), fmt.Sprintf("unnamed %s %s", f, unnamed))
		}
		return list
	}
	must("with all layers", 0, append(packets("stopped by iptables"), sockets...)...)
	n.sh("iptables-nft -F FORWARD; ip6tables-nft -F FORWARD")
	must("without iptables", 0, append(packets(byRoute), sockets...)...)
	n.sh("ip rule del pref 0 table 169254; ip -6 rule del pref 0 table 169254")
	must("without routes", 1, append(answered[:2:2], sockets...)...)
	n.sh("rm -r /sys/fs/bpf/imds-guard")
	must("without all of them", 1, answered...)

	code, c := n.checkProbe("--layers=iptables", "--interface=cni0")
	if code != 1 || len(c.Probes) != 2 {
		t.Errorf("of iptables alone: %d, %+v", code, c.Probes)
	}
}

// A probe that is killed in the middle leaves an interface behind, until the agent is back, or until the cleanup.
func TestProbeIsKilled(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	gone := func() bool { _, err := n.try("ip link show imds-guard-far"); return err != nil }
	kill := func() {
		t.Helper()
		eventually(t, "a probe is killed in the middle", func() bool { // or else after its end
			a := n.start("--probe-interval", "10s", "--resync-period", "100ms")
			eventually(t, "it probes", func() bool {
				return !gone() || a.metric(`imds_guard_probe_last_success_timestamp_seconds{family="ipv6",path="forward"}`) > 0
			})
			a.kill()
			return !gone()
		})
	}
	kill()
	a := n.startReady()
	eventually(t, "the next agent removes what was left", gone)
	a.kill()
	kill()
	if code, stdout, stderr := n.guard("cleanup"); code != 0 || !gone() {
		t.Errorf("cleanup ends with %d and says %s%s", code, stdout, stderr)
	}
}

// An answered probe of the agent outweighs what was read back, for as long as it is answered, and is not counted as a pod's.
func TestProbeOfTheAgent(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	n.sh(rewriteSources)
	n.inPod = true
	a := n.start(append(extra, "--probe-interval", "10s")...)
	result := func(path string, f imds.Family, result string) string {
		return fmt.Sprintf(`imds_guard_probe_results_total{family="%s",path="%s",result="%s"}`, f, path, result)
	}
	for _, f := range imds.Families {
		eventually(t, "a socket is refused", func() bool { return a.metric(result("socket", f, "stopped")) > 0 })
		if a.metric(result("forward", f, "answered")) != 0 {
			t.Errorf("%s: a packet was let through", f)
		}
		if at := a.metric(fmt.Sprintf(`imds_guard_probe_last_success_timestamp_seconds{family="%s",path="socket"}`, f)); at == 0 {
			t.Errorf("%s: no time of the last success", f)
		}
	}
	eventually(t, "it is ready", a.ready)

	// Nobody reads back who takes packets out of the sink.
	n.sh("nft add table netdev hole; " +
		"nft 'add chain netdev hole out { type filter hook egress device imds-guard4 priority 0; }'; nft add rule netdev hole out fwd to eth0")
	n.sh("ip neigh replace 169.254.169.254 lladdr $(cat /sys/class/net/eth0/address) dev imds-guard4")
	// Those behind interfaces that iptables' rules name are stopped all the same.
	eventually(t, "a probe is let through", func() bool { return a.metric(result("unnamed", imds.IPv4, "answered")) > 0 })
	if a.metric(result("forward", imds.IPv4, "answered")) > 0 {
		t.Error("so was one that iptables' rules stop")
	}
	eventually(t, "the node is not called protected", func() bool { return a.metric("imds_guard_protected") == 0 && !a.ready() })
	if a.metric(`imds_guard_rule_state{family="ipv4",layer="route",state="enforced"}`) != 1 {
		t.Error("the test is of no use: the layer itself sees what is wrong")
	}
	n.sh("nft delete table netdev hole")
	for _, f := range imds.Families {
		for _, layer := range []string{"iptables", "route", "cgroup"} {
			if blocked := a.metric(fmt.Sprintf(`imds_guard_blocked_packets_total{family="%s",layer="%s"}`, f, layer)); blocked != 0 {
				t.Errorf("%s %s: %v packets were counted, and no pod has sent one", layer, f, blocked)
			}
		}
	}
	if interfaces := a.metric(`imds_guard_interface_events_total{type="added"}`); interfaces != 1 {
		t.Errorf("%v pod-side interfaces have come; there is one pod", interfaces)
	}
	eventually(t, "it is protected again", func() bool { return a.metric("imds_guard_protected") == 1 })
}

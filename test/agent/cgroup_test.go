package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// threeLayers is a node on which the layer of sockets is asked for beside the others. extra are the flags for it.
func threeLayers(t *testing.T) (n *node, extra []string) {
	t.Helper()
	n = newNode(t)
	n.layers = strings.Join([]string{rules.LayerName, route.LayerName, cgroup.LayerName}, ",")
	pods, err := n.PodsCgroup()
	if err != nil {
		t.Fatal(err)
	}
	return n, []string{"--pods-cgroup", pods}
}

func (n *node) calls(in *testnode.Namespace) (results []string) {
	n.t.Helper()
	results, err := n.SocketCalls(in, "tcp 169.254.169.254:80", "udp-sendto 169.254.169.254:80", "tcp [fd00:ec2::254]:80", "udp [fd00:ec2::254]:80")
	if err != nil {
		n.t.Fatal(err)
	}
	return results
}

func allAre(results []string, want string) bool {
	return !slices.ContainsFunc(results, func(s string) bool { return s != want })
}

// Sockets are refused at once, also where packets would never reach FORWARD, and after the agent has exited; cleanup undoes all
// of it. What is lost is put back and counted; that is not an outage, since other layers stop packets.
func TestSockets(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	n.sh("NETNS=%s; %s", n.pod.Path(), macvlan)
	if err := useMacvlan(n.pod); err != nil {
		t.Fatal(err)
	}
	arrivals := countArrivals(t, n)
	eventually(t, "the macvlan leads to the endpoint", func() bool { return allAre(n.calls(n.pod.Namespace), "sent") && arrivals() > 0 })

	args := append(extra, "--backend", "nft", "--resync-period", "200ms")
	a := n.startReady(args...)
	series := func(name, family, more string) string {
		return fmt.Sprintf(`imds_guard_%s{family="%s",layer="cgroup"%s}`, name, family, more)
	}
	inForce := func() bool {
		return a.metric("imds_guard_degraded") == 0 && a.metric(series("rule_state", "ipv4", `,state="enforced"`)) == 1 &&
			a.metric(series("rule_state", "ipv6", `,state="enforced"`)) == 1
	}
	eventually(t, "all layers are in force", inForce)
	if got := n.calls(n.pod.Namespace); !allAre(got, "EPERM") {
		t.Errorf("a pod's calls end in %q", got)
	}
	if got := n.calls(n.Host()); !allAre(got, "sent") {
		t.Errorf("those of a hostNetwork pod end in %q", got)
	}
	for _, f := range []string{"ipv4", "ipv6"} {
		eventually(t, "refused calls are counted", func() bool { return a.metric(series("blocked_packets_total", f, "")) == 2 })
	}
	code, stdout, stderr := n.guard(append([]string{"check"}, append(extra, "--backend", "nft")...)...)
	if code != 0 || !strings.Contains(stdout, "cgroup ipv6    enforced") || !strings.Contains(stdout, "connect6-mapped at "+extra[1]) {
		t.Errorf("check ends with %d and says\n%s%s", code, stdout, stderr)
	}

	n.sh("mv /sys/fs/bpf/imds-guard /sys/fs/bpf/gone; rm -r /sys/fs/bpf/gone") // all at once
	eventually(t, "what was lost is counted", func() bool {
		return a.metric(series("drift_total", "ipv4", `,reason="missing"`)) > 0 && a.metric(series("drift_total", "ipv6", `,reason="missing"`)) > 0
	})
	eventually(t, "and put back", func() bool { return inForce() && a.metric("imds_guard_protected") == 1 })

	a.kill()
	if got := n.calls(n.pod.Namespace); !allAre(got, "EPERM") {
		t.Errorf("after the agent's end a pod's calls end in %q", got)
	}
	if code, stdout, stderr := n.guard("cleanup"); code != 0 ||
		!strings.Contains(stdout, "removed connect4, sendmsg4, connect6-mapped (ipv4, cgroup)") {
		t.Errorf("cleanup ends with %d and says\n%s%s", code, stdout, stderr)
	}
	if got := n.calls(n.pod.Namespace); !allAre(got, "sent") {
		t.Errorf("after the cleanup a pod's calls end in %q", got)
	}
}

// A node with a way past FORWARD is not protected by the layers that stop packets there, however many there are; nor while
// sockets can't be refused.
func TestPastForward(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	n.sh("NETNS=%s; %s", n.pod.Path(), macvlan)
	way := "bypass FORWARD (macvlan: interface mv0 of the pod behind " + n.pod.Ifname + ")"
	checks := func(code int, want ...string) {
		t.Helper()
		got, stdout, stderr := n.guard(append([]string{"check"}, extra...)...)
		for _, part := range want {
			if got != code || !strings.Contains(stdout, part) {
				t.Errorf("check ends with %d, not %d, and says, without %q,\n%s%s", got, code, part, stdout, stderr)
			}
		}
	}
	a := n.startReady(append(extra, "--resync-period", "200ms")...)
	checks(0, way, "raw frames (AF_PACKET) are not stopped")
	// Now the layer can't be read any more, be it in force or not. (At one stroke: between two umounts the agent has repaired the
	// layer in a bpffs below, and that one was busy then.)
	n.sh("mount -t tmpfs none /sys/fs/bpf")
	eventually(t, "the node is not protected", func() bool { return a.metric("imds_guard_protected") == 0 && !a.ready() })
	a.kill()

	n.layers = "iptables,route"
	extra = nil
	a = n.start("--resync-period", "200ms")
	eventually(t, "both layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if body, err := a.get("/readyz"); err == nil || a.metric("imds_guard_protected") == 1 {
		t.Errorf("ready with a macvlan beside both layers: %s", body)
	}
	checks(1, way)
	n.sh("nsenter --net=%s ip link del mv0", n.pod.Path())
	eventually(t, "it is ready without the macvlan", a.ready)
	checks(0)
}

// The loss of the layer of sockets, with the others in force, degrades: that sockets are not refused then needs no probe, and none says
// that the node is open.
func TestProbeWithoutSockets(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	a := n.startReady(extra...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	a.kill()
	n.sh("rm -r /sys/fs/bpf/imds-guard")
	if code, c := n.checkProbe(append(extra, "--backend", "auto")...); code != 0 || len(c.Probes) != 4 || c.Probes[1].Result != "stopped" {
		t.Errorf("check --probe ends with %d: %+v", code, c.Probes)
	}
}

// A node without cgroup v2 does not support the layer. That is logged once, and degrades nothing.
func TestNoCgroup2(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("umount -l /sys/fs/cgroup")
	n.layers = strings.Join([]string{route.LayerName, cgroup.LayerName}, ",")
	a := n.startReady("--resync-period", "100ms")
	for _, v := range variants[:2] {
		series := fmt.Sprintf(`imds_guard_rule_state{family="%s",layer="cgroup",state="%s"}`, v.family, layer.Unsupported)
		eventually(t, "it is unsupported", func() bool { return a.metric(series) == 1 })
	}
	eventually(t, "what the node can't have degrades nothing", func() bool {
		return a.metric("imds_guard_degraded") == 0 && a.metric("imds_guard_protected") == 1
	})
	if got := a.log.Count("does not support the layer", "layer=cgroup", "family=ipv6", "no cgroup v2 is mounted"); got != 1 {
		t.Errorf("%d lines say so", got)
	}
}

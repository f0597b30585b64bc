// What wakes the loop: notifications, polls, interfaces, the resync; and what happens when they are lost.

package agent

import (
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/layer"
)

const (
	covered   = `imds_guard_interfaces{coverage="rule"}`
	uncovered = `imds_guard_interfaces{coverage="none"}`
	noResync  = "1h" // so that only an event can have woken the loop
	lostNFT   = `imds_guard_watch_losses_total{watcher="nftables"}`
	lostLinks = `imds_guard_watch_losses_total{watcher="interfaces"}`
)

// Drift is noticed by an event, not by the resync.
func TestNoticedWithoutResync(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.startReady("--backend", string(v.backend), "--resync-period", noResync)
			for _, tamper := range []string{"-F FORWARD", "-I FORWARD -j ACCEPT", "-F"} {
				n.sh("%s -w %s", v.iptables(), tamper)
				eventually(t, "the rule is on top after "+tamper, func() bool { return n.onTop(v) })
			}
		})
	}
}

// An edit that changes no size does not show in the summary of a legacy table: the resync finds it.
func TestSameSizeEdit(t *testing.T) {
	t.Parallel()
	for _, v := range variants[2:] {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			a := n.startReady("--backend", string(v.backend), "--resync-period", "1s")
			n.sh("%s -w -R FORWARD 1 %s", v.iptables(), strings.Replace(strings.TrimPrefix(v.ours(), "-A FORWARD"), "DROP", "ACCEPT", 1))
			eventually(t, "the rule is on top again", func() bool { return n.onTop(v) })
			eventually(t, "the drift is counted", func() bool { return a.drift(v, layer.Missing) == 1 })
		})
	}
}

// The agent looks away while more nftables messages come than its socket holds.
func TestNFTablesOverflow(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	a := n.startReady("--backend", "nft", "--resync-period", noResync)
	if a.metric(lostNFT) != 0 {
		t.Fatal("losses before anything happened")
	}
	a.signal(syscall.SIGSTOP)
	n.sh(`{ echo '*filter'; echo ':BULK - [0:0]'; for i in $(seq 30000); do echo "-A BULK -s 10.$((i / 65536)).$((i / 256 %% 256)).$((i %% 256)) -j ACCEPT"; done; echo COMMIT; } | iptables-nft-restore --noflush`)
	n.sh("iptables-nft -F FORWARD")
	a.signal(syscall.SIGCONT)
	eventually(t, "the loss is counted", func() bool { return a.metric(lostNFT) >= 1 })
	eventually(t, "the rule is on top again", func() bool { return n.onTop(v) })
	n.sh("iptables-nft -F FORWARD")
	eventually(t, "the new subscription works", func() bool { return n.onTop(v) })
}

// The same for interface events.
func TestLinkOverflow(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.startReady("--resync-period", noResync)
	eventually(t, "the pod is seen", func() bool { return a.metric(covered) == 1 })
	a.signal(syscall.SIGSTOP)
	n.sh(`ip link add busy0 type veth peer name busy1; for i in $(seq 40000); do echo "link set busy0 mtu $((1000 + i %% 100))"; done | ip -batch -`)
	if _, err := n.AddPod("enifffffffffff"); err != nil {
		t.Fatal(err)
	}
	a.signal(syscall.SIGCONT)
	eventually(t, "the loss is counted", func() bool { return a.metric(lostLinks) >= 1 })
	eventually(t, "the new pod is seen", func() bool { return a.metric(covered) == 2 })
}

// 1,000 interfaces are made and removed as fast as the kernel does it.
func TestThousandInterfaces(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.startReady("--resync-period", noResync)
	n.sh(`ip netns add pods
for i in $(seq 1000); do printf 'link add eni%%011x type veth peer name p%%d netns pods\n' $i $i; done | ip -batch -`)
	eventually(t, "all are seen", func() bool { return a.metric(covered) == 1001 && a.metric(uncovered) == 0 })
	n.sh("ip netns del pods")
	eventually(t, "none is seen any more", func() bool { return a.metric(covered) == 1 })
	added, removed := a.metric(`imds_guard_interface_events_total{type="added"}`), a.metric(`imds_guard_interface_events_total{type="removed"}`)
	if added != 1001 || removed != 1000 {
		t.Errorf("%v added, %v removed", added, removed)
	}
	eventually(t, "the agent is ready after the storm", a.ready)
}

// A new pod-side interface makes the loop look at the rules. Here nothing else can: the edit does not show otherwise.
func TestNewInterfaceCausesALook(t *testing.T) {
	t.Parallel()
	v := variants[2]
	n := newNode(t)
	n.startReady("--backend", "legacy", "--resync-period", noResync)
	n.sh("%s -w -R FORWARD 1 %s", v.iptables(), strings.Replace(strings.TrimPrefix(v.ours(), "-A FORWARD"), "DROP", "ACCEPT", 1))
	if _, err := n.AddPod("eni22222222222"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rule is on top again", func() bool { return n.onTop(v) })
}

// A pod whose interface no pattern covers: it shows in a metric, in a log line with the fix, and in a check that fails.
func TestUncoveredInterface(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.startReady("--resync-period", "300ms")
	if code, stdout, _ := n.guard("check"); code != 0 {
		t.Fatalf("check ends with %d before:\n%s", code, stdout)
	}
	pod, err := n.AddPod("vlan0123456789a")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is counted", func() bool { return a.metric(uncovered) == 1 && a.metric(covered) == 1 })
	eventually(t, "it is logged", func() bool {
		return a.log.Count("level=WARN", "interface="+pod.Ifname, "--interface vlan+") == 1
	})
	code, stdout, _ := n.guard("check", "-o", "json")
	if code != 1 || !strings.Contains(stdout, `"protected": false`) || !strings.Contains(stdout, pod.Ifname) {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	if code, stdout, _ := n.guard("check"); code != 1 || !strings.Contains(stdout, "add --interface vlan+") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	a.kill()
	both := n.startReady("--interface", "eni+,vlan+")
	eventually(t, "both are covered", func() bool { return both.metric(covered) == 2 && both.metric(uncovered) == 0 })
	if code, stdout, _ := n.guard("check", "--interface", "eni+", "--interface", "vlan+"); code != 0 {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
}

// auto follows the kubelet's hints, also when they change, and looking loads no legacy table.
func TestBackendFollowsTheKubelet(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	tables := "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"
	a := n.startReady("--resync-period", "200ms")
	eventually(t, "nft is in use", func() bool { return a.uses("nft") })
	if code, _, _ := n.guard("check"); code != 0 {
		t.Errorf("check ends with %d", code)
	}
	n.guard("check", "--backend", "legacy")
	if loaded := n.sh("%s", tables); loaded != "" {
		t.Errorf("looking loaded legacy tables: %s", loaded)
	}
	n.sh("iptables-legacy -t mangle -N KUBE-KUBELET-CANARY")
	v4, v6 := variants[2], variants[3]
	eventually(t, "legacy is in use", func() bool { return a.uses("legacy") && !a.uses("nft") })
	eventually(t, "the rules are in legacy", func() bool { return n.onTop(v4) && n.onTop(v6) && a.ready() })
	if !n.onTop(variants[0]) {
		t.Error("the rule is gone from the backend that was left")
	}
	n.sh("iptables-legacy -w -F FORWARD")
	eventually(t, "legacy is watched now", func() bool { return n.onTop(v4) })
	n.sh("iptables-nft -t mangle -N KUBE-IPTABLES-HINT")
	eventually(t, "nft is in use again", func() bool { return a.uses("nft") && a.ready() })
	a.kill()
	if code, _, stderr := n.guard("cleanup"); code != 0 {
		t.Errorf("cleanup: %s", stderr)
	}
	for _, v := range variants {
		if list := n.forward(v); len(list) != 0 {
			t.Errorf("%s: cleanup left %q", v, list)
		}
	}
}

// A start on a node whose agents use legacy, and one on which only a legacy rule shows it.
func TestBackendAtStart(t *testing.T) {
	t.Parallel()
	for name, script := range map[string]string{
		"hint":                 "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT",
		"hint in IPv6":         "ip6tables-legacy -t mangle -N KUBE-IPTABLES-HINT",
		"hint and nft rules":   "iptables-legacy -t mangle -N KUBE-IPTABLES-HINT; iptables-nft -A FORWARD -j ACCEPT",
		"only rules in legacy": "iptables-legacy -A FORWARD -j ACCEPT",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.sh("%s", script)
			a := n.startReady()
			if !a.uses("legacy") || !n.onTop(variants[2]) {
				t.Error("legacy is not in use")
			}
		})
	}
}

// An agent whose loop is stuck, here for as long as a command may take, knows nothing any more.
func TestStoppedLoopIsNotReady(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := fakeBin(t, "iptables-nft", fmt.Sprintf("if [ -e %s ]; then sleep 1000000; fi\nexec $REAL \"$@\"", "/run/hang"))
	a := n.startWith([]string{path}, "--backend", "nft", "--resync-period", "100ms")
	eventually(t, "the agent is ready", a.ready)
	n.sh("touch /run/hang")
	eventually(t, "what was read is out of date", func() bool { return !a.ready() })
	if a.metric("imds_guard_protected") != 0 || !a.state(variants[0], layer.Unknown) {
		t.Error("the gauges are still green")
	}
	n.sh("rm /run/hang")
	eventually(t, "the agent is ready again", a.ready)
}

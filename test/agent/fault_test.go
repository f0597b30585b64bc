// Faults found by trying to break the guard: each test reproduces one that once existed.

package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// background runs a script on the node until the end of the test, or until stop is called.
func (n *node) background(script string) (stop func()) {
	n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := n.Command(ctx, "sh", "-ec", script)
	if err := cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	stop = func() { cancel(); <-ended }
	n.t.Cleanup(stop)
	return stop
}

// A neighbour flushes and writes more rules than before each time. That is a fight, and the inserts must go on in it. The
// agent is made to insert by commands, whose rules the neighbour takes away before they are read back.
func TestGrowingRestore(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		v       variant
		restore string // one round of it, with the number of the round in $i
	}{
		{variants[0], `{ echo '*filter'; echo ':FORWARD ACCEPT [0:0]'; for k in $(seq $i); do echo '-A FORWARD -s 10.9.9.9 -j ACCEPT'; done; echo COMMIT; } | iptables-nft-restore`},
		{variants[2], `iptables-legacy -w -F FORWARD; iptables-legacy -w -A OTHER -s 10.9.9.9 -j ACCEPT`},
	} {
		t.Run(c.v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.sh("%s -N OTHER", c.v.iptables())
			path := fakeBin(t, c.v.iptables(), fmt.Sprintf(`$REAL "$@"; code=$?
case "$*" in *"-I FORWARD"*) if [ -e /run/fight ]; then i=$(cat /run/round); echo $((i + 1)) >/run/round; %s; fi;; esac; exit $code`, c.restore))
			n.sh("echo 1 >/run/round; touch /run/fight")
			a := n.startWith([]string{path}, "--backend", string(c.v.backend), "--resync-period", "300ms")
			eventually(t, "the inserts go on", func() bool {
				round, err := strconv.Atoi(strings.TrimSpace(n.sh("cat /run/round")))
				return err == nil && round >= 30
			})
			if a.drift(c.v, layer.Unknown) != 0 || strings.Contains(a.log.String(), "not recognised") {
				t.Error("the fight was taken for a bad reading")
			}
			n.sh("rm /run/fight")
			eventually(t, "the rule is on top", func() bool { return n.onTop(c.v) && a.ready() })
			n.mustBeBlocked(c.v)
		})
	}
}

// hangingBin is fakeBin for a command that hangs while /run/hang is there, and then says in /run/hanging which process does.
func hangingBin(t *testing.T, name string) (path string) {
	return fakeBin(t, name, `if [ -e /run/hang ]; then echo $$ >/run/hanging; exec sleep 1000000; fi; exec $REAL "$@"`)
}

// hanging is the process that hangs, empty if none does yet, or not any more.
func (n *node) hanging() string {
	return strings.TrimSpace(n.sh("p=$(cat /run/hanging 2>/dev/null) && kill -0 $p 2>/dev/null && echo $p || true"))
}

// One hanging command stops nothing but its own layer: while one and the same process hangs, the other family is repaired,
// again and again. (On a machine so slow that this takes longer than a command may hang, it is tried again.)
func TestHangingCommandOfOneFamily(t *testing.T) {
	t.Parallel()
	for _, backend := range []rules.Backend{rules.NFT, rules.Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			v4, v6 := variant{backend, imds.IPv4}, variant{backend, imds.IPv6}
			a := n.startWith([]string{hangingBin(t, v6.iptables())}, "--backend", string(backend))
			eventually(t, "the agent is ready", a.ready)
			n.sh("touch /run/hang")
			n.sh("ip6tables-%s -w -A FORWARD -s 2001:db8::7 -j ACCEPT", backend) // so that IPv6 is looked at
			done := false
			eventually(t, "IPv4 is repaired three times while one command hangs", func() bool {
				first := n.hanging()
				for range 3 {
					n.sh("%s -w -F FORWARD", v4.iptables())
					eventually(t, "IPv4 is repaired", func() bool { return n.onTop(v4) })
				}
				done = first != "" && n.hanging() == first
				return done
			})
			n.mustBeBlocked(v4)
			n.sh("rm /run/hang")
			eventually(t, "the agent is ready again", a.ready)
		})
	}
}

// What has changed is unknown from the first hang on, and not only once the command is killed.
func TestHangIsUnknownAtOnce(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	v := variants[3]
	a := n.startWith([]string{hangingBin(t, v.iptables())}, "--backend", "legacy")
	eventually(t, "the agent is ready", a.ready)
	eventually(t, "it is not ready while the first command hangs", func() bool {
		n.sh("touch /run/hang; ip6tables-legacy -w -I FORWARD -j ACCEPT")
		first := ""
		eventually(t, "a command hangs", func() bool { first = n.hanging(); return first != "" })
		if !n.served(v) {
			t.Fatal("the pod is blocked; then this test proves nothing")
		}
		eventually(t, "it is not ready", func() bool { return !a.ready() })
		atOnce := n.hanging() == first
		n.sh("rm /run/hang")
		eventually(t, "the agent is ready again", a.ready)
		return atOnce
	})
}

// A time limit ends the command that hangs, and what it has started, and no other child of the agent. Here it is seen that
// nothing of it is left.
func TestHangingCommandIsEnded(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	v := variants[0]
	path := fakeBin(t, v.iptables(), `if [ -e /run/hang ]; then (echo child >/run/marker; exec sleep 1234567) & echo $! >/run/hanging; wait; fi; exec $REAL "$@"`)
	a := n.startWith([]string{path}, "--backend", "nft")
	eventually(t, "the agent is ready", a.ready)
	n.sh("touch /run/hang; iptables-nft -A FORWARD -j ACCEPT")
	first := ""
	eventually(t, "a command hangs", func() bool { first = n.hanging(); return first != "" })
	n.sh("rm /run/hang")
	eventually(t, "its child is gone", func() bool { return n.hanging() == "" })
	eventually(t, "the agent is ready again", a.ready)
	if a.metric(`imds_guard_iptables_errors_total{family="ipv4",operation="list",reason="exec"}`) != 1 {
		t.Error("the hang is not counted")
	}
}

// The lock is held, and something with another lock file writes: what the table's summary shows counts before the lock is free,
// or the wait for it is over.
func TestLegacyWriterWithAnotherLock(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	v := variants[2]
	a := n.startReady("--backend", "legacy")
	timeouts := func() float64 {
		return a.metric(`imds_guard_iptables_errors_total{family="ipv4",operation="list",reason="lock"}`)
	}
	eventually(t, "it is not ready before waiting for the lock has ended", func() bool {
		n.sh("touch /run/xtables.lock /run/held; setsid sh -c 'exec 9</run/xtables.lock; flock 9; while [ -e /run/held ]; do sleep 0.1; done' >/dev/null 2>&1 &")
		n.sh("while flock -n /run/xtables.lock true; do sleep 0.1; done")
		before := timeouts()
		n.sh("XTABLES_LOCKFILE=/run/other.lock iptables-legacy -I FORWARD -j ACCEPT")
		eventually(t, "it is not ready", func() bool { return !a.ready() })
		atOnce := timeouts() == before
		if !n.served(v) {
			t.Fatal("the pod is blocked; then this test proves nothing")
		}
		n.sh("rm /run/held")
		eventually(t, "the rule is on top again", func() bool { return n.onTop(v) && a.ready() })
		n.mustBeBlocked(v)
		return atOnce
	})
}

// Thousands of rules in FORWARD, and constant writes to another table: the state is never unknown, and an ACCEPT on top is
// repaired.
func TestLongForwardWithChurn(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	v := variants[0]
	n.sh(`{ echo '*filter'; for i in $(seq 5000); do echo "-A FORWARD -s 10.$((i / 256)).$((i %% 256)).1 -p tcp --dport 80 -j ACCEPT"; done; echo COMMIT; } | iptables-nft-restore --noflush`)
	a := n.startReady("--backend", "nft", "--resync-period", "300ms")
	stop := n.background(`nft add table ip churn; nft 'add chain ip churn c'
while :; do echo 'add rule ip churn c counter; add rule ip churn c counter; flush chain ip churn c'; done | while read -r line; do nft "$line"; done`)
	a.awaitLooks(v, 20)
	for range 5 {
		n.sh("nft insert rule ip filter FORWARD accept")
		eventually(t, "the ACCEPT is answered", func() bool {
			return strings.Contains(n.sh("nft list chain ip filter FORWARD | sed -n 4p"), `"eni*" ip daddr 169.254.169.254`)
		})
	}
	a.awaitLooks(v, 5)
	if unknown := a.drift(v, layer.Unknown); unknown != 0 {
		t.Errorf("the state was unknown %v times", unknown)
	}
	stop()
	eventually(t, "the agent is ready", a.ready)
	n.mustBeBlocked(v)
}

// The search for the kubelet's hint must not be lost to a lock that is held when the agent starts.
func TestHintBehindAHeldLock(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("iptables-legacy -t mangle -N KUBE-IPTABLES-HINT")
	n.sh("touch /run/held; setsid sh -c 'exec 9</run/xtables.lock; flock 9; while [ -e /run/held ]; do sleep 0.1; done' >/dev/null 2>&1 &")
	n.sh("while flock -n /run/xtables.lock true; do sleep 0.1; done")
	a := n.start("--resync-period", "300ms")
	eventually(t, "the agent answers", func() bool { _, err := a.get("/healthz"); return err == nil })
	n.sh("rm /run/held")
	eventually(t, "legacy is in use", func() bool { return a.uses("legacy") && a.ready() })
	if !n.onTop(variants[2]) {
		t.Error("the rule is not in legacy")
	}
}

// check uses the backend that the agent chose, where nothing else decides.
func TestCheckUsesTheAgentsBackend(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("iptables-legacy -A FORWARD -j ACCEPT")
	a := n.startReady("--resync-period", "300ms")
	eventually(t, "legacy is in use, and recorded", func() bool { return a.uses("legacy") && strings.Contains(n.record(), "legacy") })
	n.sh("iptables-nft -A FORWARD -j ACCEPT") // from now on a fresh choice is another one
	if code, stdout, _ := n.guard("check"); code != 0 || !strings.Contains(stdout, "backend        legacy") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	a.kill()
	if b := n.startReady(); !b.uses("legacy") {
		t.Error("the next agent uses another backend")
	}
}

// Following the kubelet to another backend does not count as drift.
func TestFollowingTheKubeletIsNoDrift(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.startReady("--resync-period", "200ms")
	n.sh("iptables-legacy -t mangle -N KUBE-KUBELET-CANARY")
	eventually(t, "legacy is in use", func() bool { return a.uses("legacy") && n.onTop(variants[2]) && n.onTop(variants[3]) && a.ready() })
	for _, v := range variants[2:] {
		for _, s := range rules.States {
			if s.Drifted() && a.drift(v, s) != 0 {
				t.Errorf("%s: drift %s", v, s)
			}
		}
	}
	if strings.Contains(a.log.String(), "rules drifted") {
		t.Error("the log says that rules drifted")
	}
}

// In a network namespace other than the node's, the agent stays up, guards nothing, and says why.
func TestWrongNetworkNamespace(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	env := []string{"POD_IP=10.1.0.99", "HOST_IP=10.0.0.11"}
	a := n.startWith(env, "--resync-period", "100ms")
	eventually(t, "the agent answers", func() bool { _, err := a.get("/healthz"); return err == nil })
	_, err := a.get("/readyz")
	if err == nil || a.metric("imds_guard_protected") != 0 || !a.state(variants[0], layer.Unknown) {
		t.Error("ready, or protected, in another namespace")
	}
	if lines := a.log.Count("level=ERROR", "network namespace", "hostNetwork: true"); lines != 1 {
		t.Errorf("%d lines say why", lines)
	}
	if list := n.sh("nft list ruleset"); list != "" {
		t.Errorf("rules were installed:\n%s", list)
	}
	cmd := n.Command(t.Context(), binary, "check")
	cmd.Env = append(os.Environ(), env...)
	if code, _, stderr := run(t, cmd); code != 2 || !strings.Contains(stderr, "network namespace") {
		t.Errorf("check: exit %d: %s", code, stderr)
	}
	a.signal(syscall.SIGTERM)
	<-a.done
	if code := a.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit %d", code)
	}
	// The control: with the node's own address the agent guards.
	b := n.startWith([]string{"POD_IP=10.0.0.10", "HOST_IP=10.0.0.10"})
	eventually(t, "the agent is ready", b.ready)
	n.mustBeBlocked(variants[0])
}

// A pod's interface that has a default route in a table of its own, as with egress gateways, still counts as a pod's; and a
// tunnel is reported as a way in, without an alert.
func TestEgressGatewayAndTunnel(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.sh("ip link set %s down; ip link set %s name gw0; ip link set gw0 up; ip route add default dev gw0 table 100", n.pod.Ifname, n.pod.Ifname)
	a := n.startReady("--resync-period", "300ms")
	eventually(t, "the pod is counted", func() bool { return a.metric(uncovered) == 1 })
	code, stdout, _ := n.guard("check")
	if code != 1 || !strings.Contains(stdout, "gw0: add --interface gw0") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	a.kill()
	n.sh("ip link add flannel.1 type vxlan id 1 dstport 8472 dev eth0; ip link set flannel.1 up")
	b := n.startReady("--interface", "gw0", "--resync-period", "300ms")
	eventually(t, "the tunnel is logged", func() bool { return b.log.Count("level=WARN", "interface=flannel.1", "--interface flannel.1") == 1 })
	if b.metric(uncovered) != 0 {
		t.Error("the tunnel is counted as an interface of a pod")
	}
	code, stdout, _ = n.guard("check", "--interface", "gw0")
	if code != 0 || !strings.Contains(stdout, "flannel.1: packets that a pod sends to the node inside this tunnel") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
}

// check suggests nothing that --interface refuses.
func TestCheckSuggestsWhatIsAccepted(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startReady()
	for i, name := range []string{"a+b", "x'y", "+", "a,b"} {
		n.sh(`ip netns add odd%d; ip link add "%s" type veth peer name peer netns odd%d`, i, name, i)
	}
	code, stdout, _ := n.guard("check")
	if code != 1 || strings.Count(stdout, "no --interface value can match it") != 4 || strings.Contains(stdout, "add --interface") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
}

// Two agents with different --interface put their rules above each other's. Both go on protecting, and both say what to do.
func TestTwoAgentsWithDifferentInterfaces(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.startReady("--resync-period", "300ms")
	b := n.startWith(nil, "--interface", "vlan+", "--resync-period", "300ms", "--metrics-bind-address", "127.0.0.1:9170")
	for name, agent := range map[string]*agent{"the first": a, "the second": b} {
		eventually(t, name+" says what to do", func() bool {
			return agent.log.Count("reason=displaced", "another imds-guard", "give both the same flags, or stop one") >= 1
		})
	}
	n.mustBeBlocked(variants[0])
	eventually(t, "the first is ready", a.ready)
}

// An agent in another network namespace that shares /run is no reason for cleanup to refuse.
func TestCleanupBesideAnAgentElsewhere(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	n.startReady().kill()
	elsewhere := n.Command(t.Context(), "unshare", "--net", binary, "run", "--kubernetes", "off", "--metrics-bind-address", "off")
	log := &testnode.Log{}
	elsewhere.Stdout, elsewhere.Stderr = log, log
	if err := elsewhere.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = elsewhere.Process.Kill(); _ = elsewhere.Wait() })
	eventually(t, "the other agent has recorded that it runs", func() bool {
		return len(strings.Fields(n.sh("ls /run/imds-guard"))) == 2 && strings.Contains(log.String(), "started")
	})
	if code, stdout, stderr := n.guard("cleanup"); code != 0 || !strings.Contains(stdout, "removed ") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	if !n.served(variants[0]) {
		t.Error("the rule is still there")
	}
}

// If few open files are allowed, the agent raises the limit or exits: it does not stay up without rules.
func TestFewOpenFiles(t *testing.T) {
	t.Parallel()
	for limit := 6; limit <= 14; limit += 2 {
		t.Run(strconv.Itoa(limit), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			cmd := n.Command(t.Context(), "prlimit", fmt.Sprintf("--nofile=%d:%d", limit, limit), binary,
				"run", "--kubernetes", "off", "--metrics-bind-address", "127.0.0.1:9169")
			log := &testnode.Log{}
			cmd.Stdout, cmd.Stderr = log, log
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
			eventually(t, "the rules are in and it is said, or it has ended with an error that names the limit", func() bool {
				select {
				case <-ended:
					if code := cmd.ProcessState.ExitCode(); code <= 0 || !strings.Contains(log.String(), "RLIMIT_NOFILE") {
						t.Fatalf("exit %d: %s", code, log)
					}
					return true
				default:
				}
				a := &agent{node: n}
				return a.ready() && n.onTop(variants[0])
			})
		})
	}
}

// At pids.max no process and no thread can be made. The agent goes on, and puts back what is lost without either.
func TestNoMoreProcesses(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	a := n.startReady("--backend", "nft", "--resync-period", "300ms")
	group, limit := newPidsGroup(t)
	// nsenter has become the program itself.
	if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(a.cmd.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(limit, []byte("1"), 0); err != nil { // less than there are: nothing new at all
		t.Fatal(err)
	}
	for range 20 {
		n.sh("nft flush chain ip filter FORWARD")
		eventually(t, "the rule is back", func() bool { return oursFirst.MatchString(n.nftRules(v)) })
		for range 20 {
			if _, err := a.get("/metrics"); err != nil {
				t.Fatalf("the agent does not answer any more: %v", err)
			}
		}
	}
	n.mustBeBlocked(v)
	if err := os.WriteFile(limit, []byte("max"), 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent is ready", a.ready)
}

// newPidsGroup makes a cgroup with the pids controller, of either version, and returns it with its limit's file.
func newPidsGroup(t *testing.T) (group, limit string) {
	t.Helper()
	root := "/sys/fs/cgroup/pids"
	if _, err := os.Stat(root); err != nil {
		root = "/sys/fs/cgroup"
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+pids"), 0)
	}
	group, err := os.MkdirTemp(root, "imds-guard-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for start := time.Now(); os.Remove(group) != nil && time.Since(start) < deadline; {
			time.Sleep(10 * time.Millisecond)
		}
	})
	return group, filepath.Join(group, "pids.max")
}

// Nobody reads the agent's log, and the pipe is full: repairs go on.
func TestLogThatNobodyReads(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	fd := int(w.Fd()) // which makes it block
	if err := syscall.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	for full := make([]byte, 4096); err == nil; {
		_, err = syscall.Write(fd, full)
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
	cmd := n.Command(context.Background(), binary, "run", "--kubernetes", "off", "--metrics-bind-address", "127.0.0.1:9169", "--backend", "nft")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	a := &agent{node: n}
	eventually(t, "the agent is ready", a.ready)
	for range 5 {
		n.sh("iptables-nft -w -F FORWARD")
		eventually(t, "the rule is back", func() bool { return n.onTop(v) })
	}
	n.mustBeBlocked(v)
}

package agent

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/report"
)

// own makes a pod with a controller.
func own(namespace, name, uid, kind, controller string) corev1.Pod {
	yes := true
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(uid)}}
	if kind != "" {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: controller, UID: "1", Controller: &yes}}
	}
	if kind == "ReplicaSet" {
		p.Labels = map[string]string{"pod-template-hash": controller[strings.LastIndex(controller, "-")+1:]}
	}
	return p
}

// askingNode returns a node with all layers and a stand-in for the API. flags are the agent's, except for its mode.
func askingNode(t *testing.T) (n *node, s *api, flags []string) {
	t.Helper()
	n, extra := threeLayers(t)
	s = newAPI(t, n)
	return n, s, append(extra, "--kubernetes", "on", "--node-name", "n", "--kubeconfig", s.kubeconfig, "--resync-period", "300ms")
}

func (n *node) report() (r report.Node) {
	n.t.Helper()
	code, stdout, stderr := n.guard("report", "-o", "json")
	if err := json.Unmarshal([]byte(stdout), &r); code != 0 || err != nil {
		n.t.Fatalf("report ends with %d (%v):\n%s%s", code, err, stdout, stderr)
	}
	return r
}

// rows has a line for each workload of a report: which it is, how many pods and attempts, and what was asked for.
func rows(r report.Node) (list []string) {
	for _, w := range r.Workloads {
		var asked []string
		for _, q := range w.Requests {
			asked = append(asked, q.Version+" "+q.Document+" "+q.Agent)
		}
		slices.Sort(asked)
		list = append(list, fmt.Sprintf("%s/%s/%s pods=%d blocked=%d audited=%d %s", w.Namespace, w.Kind, w.Name, w.Pods, w.Blocked, w.Audited, strings.Join(asked, ", ")))
	}
	return list
}

// In audit mode nothing is blocked, and everyone who would be is reported; a rule that an admin put there stays. Enforcing is
// one restart away, without a gap once the node is protected, and going back leaves nothing of it behind.
func TestAuditMode(t *testing.T) {
	t.Parallel()
	n, s, flags := askingNode(t)
	s.listen()
	s.put(own("shop", "web-77d-x", podUID(1), "ReplicaSet", "web-77d"))
	v := variants[0]
	n.sh("%s -w -I FORWARD -i eni+ -d 169.254.169.254/32 -j DROP; %s -w -A FORWARD -s 192.0.2.9 -j ACCEPT", v.iptables(), v.iptables())
	before := n.foreign()

	a := n.startReady(append(flags, "--mode", "audit")...)
	if got := n.forward(v); got[0] != v.ours() {
		t.Errorf("the admin's rule went: %q", got)
	}
	const blocks = "rules like those of imds-guard are in FORWARD (iptables ipv4) and block pods even in audit mode"
	if _, stdout, _ := n.guard(append([]string{"check", "--mode", "audit"}, flags...)...); !strings.Contains(stdout, blocks) {
		t.Errorf("check says nothing of the admin's rule:\n%s", stdout)
	}
	eventually(t, "so does the agent", func() bool { return strings.Contains(n.report().Condition, blocks) })
	n.sh("%s -w -D FORWARD -i eni+ -d 169.254.169.254/32 -j DROP", v.iptables())
	eventually(t, "it says so no more", func() bool { return !strings.Contains(n.report().Condition, blocks) })
	eventually(t, "attempts are counted", func() bool {
		return a.metric(`imds_guard_rule_state{family="ipv6",layer="cgroup",state="auditing"}`) == 1
	})
	if results, err := n.SocketCallsBy(podCgroup(podUID(1)), n.pod.Namespace, "get agent/1@http://169.254.169.254/latest/meta-data/instance-id"); err != nil || results[0] != "200" {
		t.Errorf("in audit mode a pod's request ends with %q, %v", results, err)
	}
	series := `imds_guard_attempts_total{namespace="shop",pod="web-77d-x",verdict="%s",workload="web"}`
	eventually(t, "the pod is named", func() bool { return a.metric(fmt.Sprintf(series, "audited")) == 1 })
	eventually(t, "an event says what to do", func() bool {
		return slices.ContainsFunc(s.told(podUID(1)), func(e string) bool {
			return strings.HasPrefix(e, "IMDSAccessAudited This pod asks") && strings.Contains(e, "would be refused")
		})
	})
	if a.metric("imds_guard_protected") != 0 || a.metric(`imds_guard_mode{mode="audit"}`) != 1 {
		t.Error("a node on which nothing is blocked is protected, or not said to be in audit mode")
	}
	if code, stdout, _ := n.guard(append([]string{"check", "--mode", "audit"}, flags...)...); code != 1 || !strings.Contains(stdout, "imds-guard runs in audit mode: it blocks nothing") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	if got := n.foreign(); got != before {
		t.Errorf("in audit mode the rules of others are\n%s\nand were\n%s", got, before)
	}
	if got := n.forward(v); slices.Contains(got, v.ours()) {
		t.Errorf("in audit mode there is a rule: %q", got)
	}
	want := []string{"shop/Deployment/web pods=1 blocked=0 audited=1 IMDSv1 other agent/1"}
	if got := n.report(); !slices.Equal(rows(got), want) || got.Mode != "audit" {
		t.Errorf("the report has %q: %+v", rows(got), got)
	}
	since := n.report().Since
	a.signal(15)
	<-a.done

	a = n.startReady(flags...)
	for _, v := range variants[:2] {
		n.mustBeBlocked(v)
	}
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if got := allAre(n.calls(n.pod.Namespace), "EPERM"); !got {
		t.Error("after audit mode sockets are not refused")
	}
	calls, err := n.SocketCallsBy(podCgroup(podUID(1)), n.pod.Namespace, "tcp 169.254.169.254:80")
	if err != nil || calls[0] != "EPERM" {
		t.Errorf("after audit mode a pod's call ends with %q, %v", calls, err)
	}
	eventually(t, "what was audited is remembered, and what is blocked is added", func() bool {
		return a.metric(fmt.Sprintf(series, "audited")) == 1 && a.metric(fmt.Sprintf(series, "blocked")) == 1
	})
	if got := n.report().Since; !got.Equal(since) {
		t.Errorf("it counts since %s, and before since %s", got, since)
	}
	a.kill()

	a = n.startReady(append(flags, "--mode", "audit")...)
	eventually(t, "nothing is blocked", func() bool {
		return n.served(variants[0]) && n.served(variants[1]) && allAre(n.calls(n.pod.Namespace), "sent")
	})
	eventually(t, "nothing is left of enforcing", func() bool {
		return !strings.Contains(n.sh("ip rule; ip -6 rule; ip link; iptables-nft -S; ip6tables-nft -S; nft list tables"), "imds") &&
			!slices.Contains(n.forward(v), v.ours()) && a.log.Count("removed what an enforcing agent had put in place") > 0
	})
	if got := n.foreign(); got != before {
		t.Errorf("back in audit mode the rules of others are\n%s\nand were\n%s", got, before)
	}
	// An enforcing agent that has not ended yet puts everything back.
	old := n.start(append(flags, "--metrics-bind-address", "off")...)
	eventually(t, "it blocks again", func() bool { return old.log.Count("msg=started") == 1 && n.onTop(v) })
	n.sh("sleep 1")
	old.kill()
	eventually(t, "nothing is left of that, either", func() bool {
		return n.served(variants[0]) && n.served(variants[1]) && allAre(n.calls(n.pod.Namespace), "sent") && !slices.Contains(n.forward(v), v.ours())
	})
	a.kill()
	n.guard("cleanup")
	if left := n.sh("ls /sys/fs/bpf | grep -v debug || true; find /run/imds-guard -name '*.json' -o -type s"); strings.TrimSpace(left) != "" {
		t.Errorf("after the cleanup there is %s", left)
	}
}

// A pod is identified by the UID in its cgroup's name, whatever its class, container or controller; also if it lives only for a
// moment, uses hostNetwork, or gets its name only when the API server is back.
func TestWhoAsks(t *testing.T) {
	t.Parallel()
	n, s, flags := askingNode(t)
	s.listen()
	flags = append(flags, "--host-network-pods", "block", "--host-network-namespaces", "kube-system")
	a := n.startReady(flags...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	underscored := func(i int) string { return strings.ReplaceAll(podUID(i), "-", "_") }
	ask := func(cgroup string, in *testnode.Namespace) {
		t.Helper()
		if got, err := n.SocketCallsBy(cgroup, in, "tcp 169.254.169.254:80", "udp [fd00:ec2::254]:53"); err != nil || !allAre(got, "EPERM") {
			t.Errorf("%s is served with %q, %v", cgroup, got, err)
		}
	}
	host := own("shop", "agent-x", podUID(6), "DaemonSet", "agent")
	host.Spec.HostNetwork = true
	for _, p := range []corev1.Pod{
		own("shop", "web-77d-x", podUID(1), "ReplicaSet", "web-77d"), own("shop", "web-88e-y", podUID(2), "ReplicaSet", "web-88e"),
		own("shop", "db-0", podUID(3), "StatefulSet", "db"), own("shop", "nightly-29012345-z", podUID(4), "Job", "nightly-29012345"),
		own("shop", "bare", podUID(5), "", ""), host,
	} {
		s.put(p)
	}
	ask("kubepods-besteffort.slice/kubepods-besteffort-pod"+underscored(1)+".slice/cri-containerd-a.scope", n.pod.Namespace) // systemd
	ask("kubepods-burstable.slice/kubepods-burstable-pod"+underscored(2)+".slice/cri-containerd-b.scope/init/more", n.pod.Namespace)
	ask("kubepods-pod"+underscored(3)+".slice/cri-containerd-c.scope", n.pod.Namespace) // guaranteed
	ask("besteffort/pod"+podUID(4)+"/container", n.pod.Namespace)                       // cgroupfs
	ask("pod"+podUID(5)+"/init-container", n.pod.Namespace)
	ask("pod"+podUID(5)+"/ephemeral-container", n.pod.Namespace)
	ask("burstable/pod"+podUID(6)+"/container", n.Host())
	want := []string{
		"shop/CronJob/nightly pods=1 blocked=2 audited=0 ", "shop/DaemonSet/agent pods=1 blocked=2 audited=0 ",
		"shop/Deployment/web pods=2 blocked=4 audited=0 ", "shop/Pod/bare pods=1 blocked=4 audited=0 ", "shop/StatefulSet/db pods=1 blocked=2 audited=0 ",
	}
	eventually(t, "the report has them all, with who has asked", func() bool {
		r := n.report()
		return slices.Equal(rows(r), want) && !slices.ContainsFunc(r.Workloads, func(w report.Workload) bool { return len(w.Commands) != 1 })
	})
	for _, w := range n.report().Workloads {
		if w.HostNetwork != (w.Name == "agent") {
			t.Errorf("the report has %+v", w)
		}
	}
	eventually(t, "each has its event", func() bool {
		for i := 1; i <= 6; i++ {
			if told := s.told(podUID(i)); len(told) != 1 || !strings.HasPrefix(told[0], "IMDSAccessBlocked This pod asks") {
				return false
			}
		}
		return true
	})
	if lines := a.log.Count("and was refused", "namespace=shop"); lines != 6 {
		t.Errorf("the log has %d lines", lines)
	}

	// A hundred pods that live for a second.
	var lives sync.WaitGroup
	for first := 100; first < 120; first++ {
		lives.Go(func() {
			for i := first; i < 200; i += 20 {
				cgroup := "besteffort/pod" + podUID(i) + "/container"
				s.put(own("batch", fmt.Sprint("job-", i), podUID(i), "Job", "many"))
				ask(cgroup, n.pod.Namespace)
				if _, err := n.try("sleep 1; rmdir %s/%s %s/besteffort/pod%s", flags[1], cgroup, flags[1], podUID(i)); err != nil {
					t.Error(err)
				}
				s.remove(podUID(i))
			}
		})
	}
	lives.Wait()
	named := func(want string) func() bool {
		return func() bool { return slices.Contains(rows(n.report()), want) }
	}
	defer func() {
		if t.Failed() {
			t.Logf("the report has %q", rows(n.report()))
		}
	}()
	eventually(t, "each of the hundred is counted and named", named("batch/Job/many pods=100 blocked=200 audited=0 "))

	// Without the API server blocking and counting go on, also over the agent's end; names come later.
	s.stop()
	ask("besteffort/pod"+podUID(7)+"/container", n.pod.Namespace)
	s.put(own("late", "late-0", podUID(7), "StatefulSet", "late"))
	eventually(t, "the attempts of one without a name are counted", named("//"+podUID(7)+" pods=1 blocked=2 audited=0 "))
	if n := a.metric(fmt.Sprintf(`imds_guard_attempts_total{namespace="unknown",pod="%s",verdict="blocked",workload="unknown"}`, podUID(7))); n != 2 {
		t.Errorf("its series has %v", n)
	}
	eventually(t, "the ledger is written", func() bool { return strings.Contains(n.sh("cat /run/imds-guard/*/attempts.json"), podUID(7)) })
	a.kill()
	ask("besteffort/pod"+podUID(7)+"/container", n.pod.Namespace)
	a = n.startReady(flags...)
	eventually(t, "attempts without an agent are counted", named("//"+podUID(7)+" pods=1 blocked=4 audited=0 "))
	s.listen()
	eventually(t, "it has a name", named("late/StatefulSet/late pods=1 blocked=4 audited=0 "))
	eventually(t, "and the others are still known", named("batch/Job/many pods=100 blocked=200 audited=0 "))
}

// A flood from one pod hides no other.
func TestFlood(t *testing.T) {
	t.Parallel()
	n, s, flags := askingNode(t)
	s.listen()
	a := n.startReady(flags...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	s.put(own("shop", "flood-0", podUID(1), "StatefulSet", "flood"))
	s.put(own("shop", "other-0", podUID(2), "StatefulSet", "other"))
	done := make(chan error)
	go func() {
		_, err := n.SocketCallsBy("pod"+podUID(1)+"/c", n.pod.Namespace, slices.Repeat([]string{"timed-connect 169.254.169.254:80"}, 5)...)
		done <- err
	}()
	eventually(t, "the flood has begun", func() bool {
		return a.metric(`imds_guard_attempts_total{namespace="shop",pod="flood-0",verdict="blocked",workload="flood"}`) > 0
	})
	if _, err := n.SocketCallsBy("pod"+podUID(2)+"/c", n.pod.Namespace, "tcp 169.254.169.254:80"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one attempt of another is counted and named", func() bool {
		return a.metric(`imds_guard_attempts_total{namespace="shop",pod="other-0",verdict="blocked",workload="other"}`) == 1 && len(s.told(podUID(2))) == 1
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	eventually(t, "no attempt of the flood is lost", func() bool {
		return a.metric(`imds_guard_attempts_total{namespace="shop",pod="flood-0",verdict="blocked",workload="flood"}`) == 5*testnode.TimedCalls
	})
}

// The socket answers root and nobody else.
func TestReportSocket(t *testing.T) {
	t.Parallel()
	n, _, flags := askingNode(t)
	if code, _, stderr := n.guard("report"); code != 1 || !strings.Contains(stderr, "no agent answers on this node") {
		t.Errorf("without an agent the report ends with %d: %s", code, stderr)
	}
	a := n.startReady(flags...)
	socket := strings.TrimSpace(n.sh("ls /run/imds-guard/*/agent.sock"))
	n.sh("chmod 666 %s", socket) // even then
	if out, err := n.try("setpriv --reuid 65534 --clear-groups %s report -o json", binary); err == nil || strings.Contains(out, "workloads") {
		t.Errorf("somebody else gets %v: %s", err, out)
	}
	eventually(t, "that is in the log", func() bool { return a.log.Count("user 65534 is not root") == 1 })
	for _, output := range []string{"text", "json", "yaml"} {
		if code, stdout, stderr := n.guard("report", "-o", output); code != 0 || stdout == "" {
			t.Errorf("report -o %s ends with %d: %s%s", output, code, stdout, stderr)
		}
	}
	if code, _, stderr := n.guard("report", "-o", "xml"); code != 2 || !strings.Contains(stderr, `--output: "xml" is not valid; use text, json or yaml`) {
		t.Errorf("report -o xml ends with %d: %s", code, stderr)
	}
}

// With --attribution=off no pod is looked up, named or reported.
func TestAttributionOff(t *testing.T) {
	t.Parallel()
	n, s, flags := askingNode(t)
	s.listen()
	s.put(own("shop", "db-0", podUID(1), "StatefulSet", "db"))
	a := n.startReady(append(flags, "--attribution", "off")...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if got, err := n.SocketCallsBy("pod"+podUID(1)+"/c", n.pod.Namespace, "tcp 169.254.169.254:80"); err != nil || got[0] != "EPERM" {
		t.Errorf("a pod is served with %q, %v", got, err)
	}
	eventually(t, "the call is counted", func() bool {
		return a.metric(`imds_guard_blocked_packets_total{family="ipv4",layer="cgroup"}`) == 1
	})
	n.sh("sleep 1")
	text, err := a.get("/metrics")
	if err != nil || strings.Contains(text, "attempts_total") || strings.Contains(text, "db-0") || len(s.told(podUID(1))) > 0 {
		t.Errorf("it is named: %v\n%s", err, text)
	}
	if a.metric(`imds_guard_kubernetes_requests_total{operation="list_pods",result="success"}`) != 0 {
		t.Error("pods were asked for")
	}
	if r := n.report(); len(r.Workloads) > 0 || !strings.Contains(r.Incomplete, "--attribution=off") {
		t.Errorf("the report: %+v", r)
	}
}

// Where the layer of sockets can't be switched to audit mode, programs that refuse sockets are removed.
func TestAuditModeWithoutSockets(t *testing.T) {
	t.Parallel()
	n, _, flags := askingNode(t)
	a := n.startReady(flags...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if got := n.calls(n.pod.Namespace); !allAre(got, "EPERM") {
		t.Errorf("when it is enforced: %q", got)
	}
	a.kill()
	flags = append(flags, "--mode", "audit", "--pods-cgroup", "/sys/fs/cgroup/nowhere")
	a = n.startReady(flags...)
	eventually(t, "nothing is blocked", func() bool { return allAre(n.calls(n.pod.Namespace), "sent") && n.served(variants[0]) })
	if r := n.report(); !strings.Contains(r.Incomplete, "ipv4 attempts may be missing: the cgroup layer is unknown") || r.Protected {
		t.Errorf("the report: %+v", r)
	}
}

// The report agrees with check: a pod behind an interface that nothing covers makes a node unprotected.
func TestReportOfAnUncoveredInterface(t *testing.T) {
	t.Parallel()
	n, _, flags := askingNode(t)
	n.layers = "iptables,cgroup"
	if _, err := n.AddPod("cali0123456789a"); err != nil {
		t.Fatal(err)
	}
	n.startReady(flags...)
	eventually(t, "it is not protected", func() bool {
		r := n.report()
		return !r.Protected && strings.Contains(r.Condition, "cali0123456789a")
	})
	if code, _, _ := n.guard(append([]string{"check"}, flags...)...); code != 1 {
		t.Errorf("check ends with %d", code)
	}
}

// The capabilities of the hardened variant are enough for audit mode, and for the report.
func TestAuditModeHardened(t *testing.T) {
	t.Parallel()
	n, _, flags := askingNode(t)
	cmd := n.Command(t.Context(), "setpriv", append([]string{"--bounding-set=-all,+net_admin,+net_raw,+bpf", "--", binary, "run", "--layers", n.layers,
		"--mode", "audit", "--metrics-bind-address", "127.0.0.1:9169"}, flags...)...)
	log := &testnode.Log{}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	defer func() {
		_ = cmd.Process.Kill()
		if <-ended; t.Failed() {
			t.Logf("the log:\n%s", log)
		}
	}()
	eventually(t, "it counts", func() bool { return log.Count("rules installed", "egress") == 2 && log.Count("serving metrics") == 1 })
	if got, err := n.SocketCallsBy(podCgroup(podUID(1)), n.pod.Namespace, "get-v2 agent/1@http://169.254.169.254/latest/meta-data/instance-id"); err != nil || got[0] != "200" {
		t.Fatalf("a pod's request ends with %q, %v", got, err)
	}
	want := []string{"//" + podUID(1) + " pods=1 blocked=0 audited=2 IMDSv2 other agent/1, IMDSv2 token agent/1"}
	eventually(t, "the report has it", func() bool { return slices.Equal(rows(n.report()), want) })
}

package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testapi"
)

func podUID(i int) string { return testapi.PodUID(i) }

// podCgroup is the cgroup of a container of a burstable pod, by the systemd driver.
func podCgroup(uid string) string {
	return "burstable.slice/kubepods-burstable-pod" + strings.ReplaceAll(uid, "-", "_") + ".slice/container"
}

// hostNetwork pods come and go. Those in the namespaces that are let through are served; others are refused and named. That
// stays so while the API server is away, and after the agent was killed.
func TestHostNetworkPods(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	s := newAPI(t, n)
	calls := func(uid string) string {
		t.Helper()
		results, err := n.SocketCallsBy(podCgroup(uid), n.Host(), "tcp 169.254.169.254:80", "udp [fd00:ec2::254]:80")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Join(slices.Compact(results), ",")
	}
	calls(podUID(0))
	s.add("default", "old", podUID(0))
	flags := append(extra, "--kubernetes", "on", "--node-name", "n", "--kubeconfig", s.kubeconfig, "--host-network-pods", "block", "--resync-period", "300ms")
	a := n.startReady(flags...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	if got := calls(podUID(0)); got != "sent" {
		t.Errorf("before the API server has answered, a pod in the node's network is served with %s", got)
	}
	code, stdout, _ := n.guard(append([]string{"check", "--host-network-pods", "block"}, extra...)...)
	if code != 0 || !strings.Contains(stdout, "it is not known yet which of them should be") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	s.listen()
	eventually(t, "then it is refused", func() bool { return calls(podUID(0)) == "EPERM" })
	eventually(t, "and named", func() bool {
		return a.log.Count("and was refused", "namespace=default", "pod=old", "hostNetwork=true", "uid="+podUID(0)) == 1
	})

	for i := 1; i <= 100; i++ {
		uid := podUID(i)
		if namespace := []string{"kube-system", "default"}[i%2]; namespace == "default" {
			s.add(namespace, fmt.Sprint("pod", i), uid)
			if got := calls(uid); got != "EPERM" {
				t.Errorf("pod %d is served with %s", i, got)
			}
		} else if i%4 == 0 { // the API server is quicker
			s.add(namespace, fmt.Sprint("pod", i), uid)
			eventually(t, "a pod that is let through is served", func() bool { return calls(uid) == "sent" })
		} else { // the kubelet is quicker
			calls(uid)
			s.add(namespace, fmt.Sprint("pod", i), uid)
			eventually(t, "a pod that is let through is served", func() bool { return calls(uid) == "sent" })
		}
		if i != 50 && i != 51 {
			s.remove(uid)
			if i%20 == 0 {
				eventually(t, "it is let through no more", func() bool { return calls(uid) == "EPERM" })
			}
		}
	}
	allowed, refused := podUID(50), podUID(51)
	eventually(t, "one that has gone is let through no more", func() bool { return calls(podUID(98)) == "EPERM" })

	must := func(when string) {
		t.Helper()
		if got := calls(allowed) + " " + calls(refused); got != "sent EPERM" {
			t.Errorf("%s, a pod that is let through and another are served with %s", when, got)
		}
	}
	s.stop()
	must("without the API server")
	n.sh("sleep 1")
	must("after three resync periods")
	a.kill()
	must("without an agent")
	a = n.startReady(flags...)
	n.sh("sleep 1")
	must("with an agent that has not reached the API server")
	s.listen()
	late := podUID(200)
	s.add("kube-system", "late", late)
	eventually(t, "a new one is let through", func() bool { return calls(late) == "sent" })
	a.kill()

	n.startReady(append(flags, "--host-network-pods", "audit")...)
	eventually(t, "with audit all are served", func() bool { return calls(refused) == "sent" })
}

// Without the API, hostNetwork pods can't be told apart.
func TestHostNetworkPodsAlone(t *testing.T) {
	t.Parallel()
	n, extra := threeLayers(t)
	audited := n.startReady(append(extra, "--host-network-pods", "audit", "--resync-period", "200ms")...)
	eventually(t, "who would be refused is named", func() bool {
		return allAre(n.calls(n.Host()), "sent") && audited.log.Count("and would have been refused", `pod=""`) == 1
	})
	audited.kill()
	n.startReady(append(extra, "--host-network-pods", "block")...)
	eventually(t, "all are refused", func() bool { return allAre(n.calls(n.Host()), "EPERM") })
	// What is below no pods' cgroup is the node's own.
	conn, err := n.Host().Dial(t.Context(), "tcp", "169.254.169.254:80")
	if err != nil {
		t.Fatalf("the node itself: %v", err)
	}
	conn.Close()
}

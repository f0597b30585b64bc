// What `helm test` runs: a pod that is answered is told from one that is not, and that from a node where nobody is answered, and
// from a pod that has no network.

package agent

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

func TestAsk(t *testing.T) {
	t.Parallel()
	n, flags := threeLayers(t)
	patience := "1h" // for what will succeed
	ask := func(when, who, want string, code int, says string) {
		t.Helper()
		in := map[string]*testnode.Namespace{"pod": n.pod.Namespace, "node": n.Host()}[who]
		cmd := in.Command(context.Background(), binary, "ask", "--want", want, "--patience", patience)
		cmd.Env = append(os.Environ(), "KUBERNETES_SERVICE_HOST="+testnode.Elsewhere4, "KUBERNETES_SERVICE_PORT=80", "NODE_NAME=node-a")
		if who == "pod" {
			done, err := n.InContainer(cmd)
			if err != nil {
				t.Fatal(err)
			}
			defer done.Close()
		}
		got, stdout, stderr := run(t, cmd)
		if got != code || !strings.Contains(stdout+stderr, says) {
			t.Errorf("%s, the %s wants %s: exit %d, want %d and %q:\n%s%s", when, who, want, got, code, says, stdout, stderr)
		}
	}
	const open, nobody = "IMDS is not blocked here", "there is no metadata service here"

	ask("before", "node", "answer", 0, "ipv4 169.254.169.254: answered\nipv6 fd00:ec2::254: answered")
	ask("before", "pod", "none", 1, open)
	ask("before", "pod", "refusal", 1, open)

	back := noRoute(t, n.pod)
	patience = "1ms"
	ask("without a network", "pod", "none", 1, "this pod reaches nothing at all")
	patience = "1h"
	back()

	all := n.layers
	n.layers = "iptables,route"
	a := n.startReady()
	ask("by packets", "node", "answer", 0, "answered")
	ask("by packets", "pod", "none", 0, "this pod has a network\nipv4 169.254.169.254: dial tcp")
	ask("by packets", "pod", "none", 0, "kept away from the metadata service on the node node-a")
	ask("by packets", "pod", "refusal", 1, "no refusal by the layer cgroup")
	a.kill()

	n.layers = all
	n.startReady(flags...)
	ask("by sockets", "node", "answer", 0, "answered")
	ask("by sockets", "pod", "none", 0, "operation not permitted")
	ask("by sockets", "pod", "refusal", 0, "operation not permitted")
	ask("by sockets", "pod", "answer", 1, "agent.hostNetworkPods blocks this pod")

	// A refusal needs no network, and is no answer that anything else gives.
	noRoute(t, n.pod)
	ask("by sockets, without a network", "pod", "none", 0, "operation not permitted")

	n.IMDS().Stop()
	ask("without a service", "node", "answer", 1, nobody)
}

// noRoute takes away the pod's default routes, and returns how to give them back.
func noRoute(t *testing.T, pod *testnode.Pod) (back func()) {
	t.Helper()
	ip := func(args ...string) string {
		t.Helper()
		code, stdout, stderr := run(t, pod.Command(context.Background(), "ip", args...))
		if code != 0 {
			t.Fatalf("ip %v: %s", args, stderr)
		}
		return stdout
	}
	had := map[string]string{}
	for _, family := range []string{"-4", "-6"} {
		had[family] = ip(family, "route", "show", "default")
		ip(family, "route", "del", "default")
	}
	return func() {
		t.Helper()
		for family, route := range had {
			ip(append([]string{family, "route", "add"}, strings.Fields(route)...)...)
		}
	}
}

// A pod whose network comes late, as some CNIs do it, is not proof meanwhile: it is asked again once it has one.
func TestAskWaitsForTheNetwork(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	back := noRoute(t, n.pod)
	cmd := n.pod.Command(context.Background(), binary, "ask", "--want=none", "--patience=1h")
	cmd.Env = append(os.Environ(), "KUBERNETES_SERVICE_HOST="+testnode.Elsewhere4, "KUBERNETES_SERVICE_PORT=80")
	var log testnode.Log
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it tries to reach the API server", func() bool { return log.Count("tried for") > 0 })
	back()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 1 || log.Count("IMDS is not blocked here") == 0 {
		t.Errorf("exit %d: %s", got, log.String())
	}
}

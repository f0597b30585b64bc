// What `helm test` runs: a pod that is answered is told from one that is not, and that from a node where nobody is answered.

package agent

import (
	"context"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

func TestAsk(t *testing.T) {
	t.Parallel()
	n, flags := threeLayers(t)
	ask := func(when, who, want string, code int, says string) {
		t.Helper()
		in := map[string]*testnode.Namespace{"pod": n.pod.Namespace, "node": n.Host()}[who]
		cmd := in.Command(context.Background(), binary, "ask", "--want", want)
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

	all := n.layers
	n.layers = "iptables,route"
	a := n.startReady()
	ask("by packets", "node", "answer", 0, "answered")
	ask("by packets", "pod", "none", 0, "ipv4 169.254.169.254: dial tcp")
	ask("by packets", "pod", "refusal", 1, "no refusal by the layer cgroup")
	a.kill()

	n.layers = all
	n.startReady(flags...)
	ask("by sockets", "node", "answer", 0, "answered")
	ask("by sockets", "pod", "none", 0, "operation not permitted")
	ask("by sockets", "pod", "refusal", 0, "operation not permitted")
	ask("by sockets", "pod", "answer", 1, "agent.hostNetworkPods blocks this pod")

	n.IMDS().Stop()
	ask("without a service", "node", "answer", 1, nobody)
}

package ifwatch

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// reaches reports whether the pod gets the role's name from the endpoint, or is refused by a rule.
func reaches(t *testing.T, pod *testnode.Pod) bool {
	t.Helper()
	body, err := pod.Get(t.Context(), "http://"+testnode.IMDSv4+"/latest/meta-data/iam/security-credentials/")
	if err != nil && !errors.Is(err, unix.ECONNREFUSED) || err == nil && body != testnode.Role {
		t.Fatalf("the endpoint gives %q, %v", body, err)
	}
	return err == nil
}

// A pod sends VXLAN packets to the node's own port: what is inside comes in by the tunnel, past a rule for the pod's
// interface. A rule for the interface that the picture names stops it, also where the tunnel is in a bridge.
func TestTunnelIsAWayIn(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script, by string
	}{
		{"alone", "ip addr add 10.8.0.1/24 dev flannel.1", "flannel.1"},
		{"in a bridge", `ip link add lan type bridge; ip link set lan up; ip link set flannel.1 master lan
			ip addr add 10.8.0.1/24 dev lan`, "lan"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := testnode.Make(t)
			pod, err := n.AddPod("eni0123456789a")
			if err != nil {
				t.Fatal(err)
			}
			if before := list(t, n); len(before.Tunnels) != 0 {
				t.Errorf("tunnels before there is one: %v", before.Tunnels)
			}
			const add = "ip link add flannel.1 type vxlan id 1 dstport 8472 "
			sh(t, n, add+`local 10.0.0.10 dev eth0
				iptables -A FORWARD -i eni+ -d 169.254.169.254 -j REJECT`)
			if down := list(t, n); len(down.Tunnels) != 0 {
				t.Errorf("tunnels while it is down: %v", down.Tunnels)
			}
			sh(t, n, "ip link set flannel.1 up\n"+c.script)
			if reaches(t, pod) {
				t.Fatal("the pod reaches the endpoint past the rule for its interface, without a tunnel")
			}
			out, err := pod.Command(t.Context(), "sh", "-ec", add+`remote 10.0.0.10
				ip addr add 10.8.0.2/24 dev flannel.1; ip link set flannel.1 up
				ip route add 169.254.169.254 via 10.8.0.1 dev flannel.1 src `+pod.IPv4.String()).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if !reaches(t, pod) {
				t.Fatal("the pod does not reach the endpoint by the tunnel")
			}
			p := list(t, n)
			if want := []Interface{{c.by, "vxlan"}}; !slices.Equal(p.Tunnels, want) {
				t.Fatalf("the tunnels are %v, want %v", p.Tunnels, want)
			}
			if got := sorted(p.Interfaces); !slices.Equal(got, []string{"eni0123456789a"}) {
				t.Errorf("pod-side are %q", got)
			}
			sh(t, n, "iptables -A FORWARD -i "+p.Tunnels[0].Name+" -d 169.254.169.254 -j REJECT")
			if reaches(t, pod) {
				t.Error("the pod reaches the endpoint past a rule for the tunnel")
			}
		})
	}
}

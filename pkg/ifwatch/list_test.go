// What the kernel says of real interfaces.

package ifwatch

import (
	"slices"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

func byName(a, b Interface) int { return strings.Compare(a.Name+a.Kind, b.Name+b.Kind) }

// sh runs a script on the node.
func sh(t *testing.T, n *testnode.Node, script string) {
	t.Helper()
	if out, err := n.Command(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

// list lists the interfaces of a node.
func list(t *testing.T, n *testnode.Node) (p Picture) {
	t.Helper()
	err := n.Host().Do(func() (err error) {
		p, err = List()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// podsCase is a script and the pod-side interfaces that it makes. It finds a network namespace called pod, mounted in the
// node's own /run, which goes with the node.
type podsCase struct {
	name, script string
	want         []string
}

func (c podsCase) run(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	sh(t, n, "ip netns add pod\n"+c.script)
	if got := sorted(list(t, n).Interfaces); !slices.Equal(got, c.want) {
		t.Errorf("pod-side are %q, want %q", got, c.want)
	}
}

func TestWhichInterfacesLeadToPods(t *testing.T) {
	t.Parallel()
	for _, c := range []podsCase{
		{"nothing but the uplink, which is a veth", "", nil},
		{"a pair on the node itself", "ip link add veth0 type veth peer name veth1", nil},
		{"a veth to a pod, whatever its name", "ip link add x1 type veth peer name y netns pod", []string{"x1"}},
		{"a bridge stands for its ports", `ip link add cni7 type bridge
			ip link add veth1 type veth peer name y1 netns pod; ip link set veth1 master cni7
			ip link add veth2 type veth peer name y2 netns pod; ip link set veth2 master cni7`, []string{"cni7"}},
		{"a bridge without pods, by another name", "ip link add lan type bridge", nil},
		{"a bridge with a pod, by another name", `ip link add lan type bridge
			ip link add veth1 type veth peer name y1 netns pod; ip link set veth1 master lan`, []string{"lan"}},
		{"a macvlan on a bridge with a pod", `ip link add lan type bridge
			ip link add veth1 type veth peer name y1 netns pod; ip link set veth1 master lan
			ip link add link lan name shim type macvlan mode bridge`, []string{"lan", "shim"}},
		{"a macvlan on the uplink", "ip link add link eth0 name shim type macvlan mode bridge", nil},
		{"known names, whatever their type", `n=0; for i in cni0 cbr0 docker0 cali0123456789a lxc0a1b2c3d; do
			ip link add $i type veth peer name p$((n+=1)); done`, []string{"cali0123456789a", "cbr0", "cni0", "docker0", "lxc0a1b2c3d"}},
		{"bridges by known names that nobody is behind",
			"for i in cni0 cbr0 docker0 br-0123456789ab; do ip link add $i type bridge; done", nil},
		{"a bridge by a known name, and a port whose other end doesn't say whether it is a pod's",
			"ip link add docker0 type bridge; ip link add x type veth peer name y; ip link set x master docker0", []string{"docker0"}},
		{"names that only begin alike", "for i in cni calico enis vlan100 eni0; do ip link add $i type bridge; done", nil},
		{"an uplink bridge with a pod", `ip link add br0 type bridge; ip link add veth1 type veth peer name y1 netns pod
			ip link set veth1 master br0; ip addr add 10.9.0.2/24 dev br0; ip link set br0 up
			ip route add default via 10.9.0.1 dev br0 metric 7`, nil},
	} {
		t.Run(c.name, c.run)
	}
}

// Containers come and go. Between two of them docker0 has no port, and is not an unused one all the same.
func TestABridgeThatWasUsedStaysOnTheList(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	look := func(when string, want ...string) {
		t.Helper()
		if got := sorted(list(t, n).Interfaces); !slices.Equal(got, want) {
			t.Errorf("%s, pod-side are %q, want %q", when, got, want)
		}
	}
	sh(t, n, "ip netns add pod; ip link add docker0 type bridge; ip addr add 10.9.0.1/24 dev docker0; ip link set docker0 up")
	look("before the first container")
	sh(t, n, `ip link add veth1 type veth peer name y1 netns pod; ip link set veth1 master docker0 up
		ip -n pod addr add 10.9.0.2/24 dev y1; ip -n pod link set y1 up
		ip netns exec pod bash -c ': </dev/tcp/10.9.0.1/80' 2>&1 | grep 'Connection refused' # by the node: it has got there`)
	look("with a container", "docker0")
	sh(t, n, "ip link del veth1")
	look("after it", "docker0")
}

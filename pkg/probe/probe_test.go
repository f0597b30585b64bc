package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
)

func sh(t *testing.T, in interface {
	Command(ctx context.Context, name string, args ...string) *exec.Cmd
}, format string, args ...any,
) string {
	t.Helper()
	script := fmt.Sprintf(format, args...)
	out, err := in.Command(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
	return string(out)
}

func eni(t *testing.T) []ifpattern.Pattern {
	t.Helper()
	p, err := ifpattern.Parse("eni+")
	if err != nil {
		t.Fatal(err)
	}
	return []ifpattern.Pattern{p}
}

// forward probes on a node, from whatever thread.
func forward(t *testing.T, n *testnode.Node, f imds.Family) (s Seen, err error) {
	t.Helper()
	patterns := eni(t)
	_ = n.Host().Do(func() error {
		s, err = Forward(f, patterns)
		return nil
	})
	return s, err
}

// must probes, and leaves nothing behind.
func must(t *testing.T, n *testnode.Node, f imds.Family, how string, want Seen) {
	t.Helper()
	got, err := forward(t, n, f)
	if err != nil || got != want {
		t.Errorf("%s, %s: %+v (%v), want %+v", f, how, got, err, want)
	}
	if left := sh(t, n, "ip -o link; ip route show table all; ip -6 route show table all; ip neigh; ip -6 neigh"); strings.Contains(left, "imds") {
		t.Errorf("%s, %s: left behind:\n%s", f, how, left)
	}
}

var masquerade = map[imds.Family]string{
	imds.IPv4: "iptables-nft -t nat -A POSTROUTING -o eth0 -j MASQUERADE",
	imds.IPv6: "ip6tables-nft -t nat -A POSTROUTING -o eth0 -j MASQUERADE",
}

// An open node is recognised as open: the packet leaves, and is answered. What stops the packet is identified as far as
// possible.
func TestForward(t *testing.T) {
	t.Parallel()
	for _, f := range imds.Families {
		for _, rpFilter := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("%s/rp_filter=%d", f, rpFilter), func(t *testing.T) {
				t.Parallel()
				n := testnode.Make(t)
				sh(t, n, "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo %d > $f; done", rpFilter)
				must(t, n, f, "nobody would answer to it", Seen{Left: "eth0"})
				sh(t, n, "%s", masquerade[f])
				must(t, n, f, "the source is rewritten, as on every node", Seen{Left: "eth0", Answered: true})

				table := strings.Fields(masquerade[f])[0]
				address := f.Endpoint().String()
				sh(t, n, "%s -I FORWARD -i eni+ -d %s -j DROP", table, address)
				must(t, n, f, "dropped", Seen{})
				if counted := sh(t, n, "%s -nvxL FORWARD 1", table); strings.Fields(counted)[0] != fmt.Sprint(Packets) {
					t.Errorf("the rule has counted %s", counted)
				}
				sh(t, n, "%s -F FORWARD; %s -I FORWARD -i eni+ -p tcp -d %s -j REJECT --reject-with tcp-reset", table, table, address)
				must(t, n, f, "refused by the node itself", Seen{})
				sh(t, n, "%s -F FORWARD; ip link add sink type veth peer name sunk; ip link set sink arp off up; ip route add %s dev sink", table, address)
				must(t, n, f, "sent into a sink", Seen{})
				sh(t, n, "ip route del %s; ip route add blackhole %s", address, address)
				must(t, n, f, "sent nowhere", Seen{})
			})
		}
	}
}

// What a killed process left behind is removed; what belongs to somebody else is not, and is named.
func TestLeftBehind(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	sh(t, n, "ip link add eniimdsprobe type veth peer name imds-guard-far; ip link set eniimdsprobe up; "+
		"ip route add 192.0.2.254 dev eniimdsprobe")
	must(t, n, imds.IPv4, "after a killed one", Seen{Left: "eth0"})
	sh(t, n, "ip link add eniimdsprobe type bridge")
	if got, err := forward(t, n, imds.IPv4); err == nil || !strings.Contains(err.Error(), "making the interface eniimdsprobe: file exists") {
		t.Errorf("beside somebody's interface of that name: %+v, %v", got, err)
	}
	sh(t, n, "ip link show eniimdsprobe; ip link del eniimdsprobe; ip link add imds-guard-far type bridge")
	if got, err := forward(t, n, imds.IPv4); err == nil {
		t.Errorf("beside somebody's far end: %+v", got)
	}
	sh(t, n, "ip link show imds-guard-far")
}

// A node that forwards no packets of a family needs none sent.
func TestNotForwarding(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	sh(t, n, "echo 0 > /proc/sys/net/ipv4/conf/default/forwarding; echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
	for _, f := range imds.Families { // what new interfaces get by default is not what pods' have
		must(t, n, f, "with other defaults", Seen{Left: "eth0"})
	}
	sh(t, n, "for f in /proc/sys/net/ipv4/conf/*/forwarding; do echo 0 > $f; done; echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
	for _, f := range imds.Families {
		if got, err := forward(t, n, f); !errors.Is(err, ErrNotForwarding) || got != (Seen{}) {
			t.Errorf("%s: %+v, %v", f, got, err)
		}
	}
	sh(t, n, "test ! -e /sys/class/net/imds-guard-far")
}

// Several at once wait for each other.
func TestTogether(t *testing.T) {
	t.Parallel()
	n := testnode.Make(t)
	var wg sync.WaitGroup
	for range 2 {
		for _, f := range imds.Families {
			wg.Go(func() {
				if got, err := forward(t, n, f); err != nil || got.Left != "eth0" {
					t.Errorf("%s: %+v, %v", f, got, err)
				}
			})
		}
	}
	wg.Wait()
}

func TestNearName(t *testing.T) {
	for patterns, want := range map[string]string{
		"eni+": "eniimdsprobe", "cni0 cali+ eni+": "caliimdsprobe", "cni0": "imdsprobe", "eni012345678+": "eni012345678imd", "eni01234567890+": "eni01234567890i",
	} {
		var parsed []ifpattern.Pattern
		for _, text := range strings.Fields(patterns) {
			p, err := ifpattern.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			parsed = append(parsed, p)
		}
		if got := nearName(parsed); got != want {
			t.Errorf("%s: %s, want %s", patterns, got, want)
		}
	}
}

// No two probes look alike.
func TestSegmentsDiffer(t *testing.T) {
	for _, f := range imds.Families {
		a, b := newSegment(f), newSegment(f)
		if a == b || a.source.Is4() != (f == imds.IPv4) || a.destination == (netip.Addr{}) {
			t.Errorf("%+v, %+v", a, b)
		}
	}
}

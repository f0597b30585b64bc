package ifwatch

import (
	"bytes"
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
)

// names lists the pod-side interfaces of a node.
func names(t *testing.T, n *testnode.Node) (list []string) {
	t.Helper()
	err := n.Host().Do(func() error {
		found, err := List()
		for _, i := range found {
			list = append(list, i.Name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

func TestWhichInterfacesLeadToPods(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		want         []string
	}{
		{"nothing but the uplink, which is a veth", "", nil},
		{"a pair on the node itself", "ip link add veth0 type veth peer name veth1", nil},
		{"a veth to a pod, whatever its name", "ip link add x1 type veth peer name y netns pod", []string{"x1"}},
		{"a bridge stands for its ports", `ip link add cni7 type bridge
			ip link add veth1 type veth peer name y1 netns pod; ip link set veth1 master cni7
			ip link add veth2 type veth peer name y2 netns pod; ip link set veth2 master cni7`, []string{"cni7"}},
		{"a bridge without pods, by another name", "ip link add lan type bridge", nil},
		{"a bridge with a pod, by another name", `ip link add lan type bridge
			ip link add veth1 type veth peer name y1 netns pod; ip link set veth1 master lan`, []string{"lan"}},
		{"known names, whatever their type", "for i in cni0 cbr0 docker0 cali0123456789a lxc0a1b2c3d; do ip link add $i type bridge; done",
			[]string{"cali0123456789a", "cbr0", "cni0", "docker0", "lxc0a1b2c3d"}},
		{"names that only begin alike", "for i in cni calico enis vlan100 eni0; do ip link add $i type bridge; done", nil},
		{"a second uplink, in a table of its own", `ip link add eth1 type veth peer name e1 netns pod
			ip addr add 10.9.0.2/24 dev eth1; ip link set eth1 up; ip route add default via 10.9.0.1 dev eth1 table 1001`, nil},
		{"an uplink among several of one route", `ip link add eth1 type veth peer name e1 netns pod
			ip addr add 10.9.0.2/24 dev eth1; ip link set eth1 up
			ip route add default table 7 nexthop via 10.9.0.1 dev eth1 nexthop via 10.9.0.3 dev eth1`, nil},
		{"the route to the endpoint alone", `ip link add eth1 type veth peer name e1 netns pod
			ip link set eth1 up; ip route add 169.254.169.254 dev eth1`, nil},
		{"an uplink bridge with a pod", `ip link add br0 type bridge; ip link add veth1 type veth peer name y1 netns pod
			ip link set veth1 master br0; ip addr add 10.9.0.2/24 dev br0; ip link set br0 up
			ip route add default via 10.9.0.1 dev br0 table 7`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n, err := testnode.New()
			if err != nil {
				t.Fatal(err)
			}
			defer n.Close()
			// A namespace mounted in the node's own /run, which goes with the node.
			out, err := n.Command(t.Context(), "sh", "-ec", "ip netns add pod\n"+c.script).CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got := names(t, n); !slices.Equal(got, c.want) {
				t.Errorf("pod-side are %q, want %q", got, c.want)
			}
		})
	}
}

func TestUncoveredAndSuggest(t *testing.T) {
	eni, err := ifpattern.Parse("eni+")
	if err != nil {
		t.Fatal(err)
	}
	interfaces := []Interface{{"eni0123456789a", "veth"}, {"vlan0123456789a", "veth"}, {"weird7", "veth"}}
	uncovered := Uncovered(interfaces, []ifpattern.Pattern{eni})
	if len(uncovered) != 2 || len(interfaces) != 3 {
		t.Fatalf("uncovered: %v", uncovered)
	}
	for _, i := range uncovered {
		p, err := ifpattern.Parse(Suggest(i.Name))
		if err != nil || len(Uncovered([]Interface{i}, []ifpattern.Pattern{p})) != 0 {
			t.Errorf("Suggest(%q) = %q does not cover it (%v)", i.Name, p, err)
		}
	}
}

// An interface is named once, and only after it had the time to get its bridge or its name.
func TestReporter(t *testing.T) {
	var log bytes.Buffer
	r := Reporter{Log: slog.New(slog.NewTextHandler(&log, nil))}
	veth := []Interface{{"veth1", "veth"}}
	start := time.Now()
	lines := func(after time.Duration, uncovered []Interface, want int) {
		t.Helper()
		settled, settling := r.Report(start.Add(after), uncovered)
		if (len(settled) == 1) != (uncovered != nil && r.told[veth[0]]) || settling != (uncovered != nil && !r.told[veth[0]]) {
			t.Errorf("after %s: settled %v, settling %t", after, settled, settling)
		}
		if got := strings.Count(log.String(), "interface=veth1"); got != want {
			t.Errorf("after %s: %d lines, want %d", after, got, want)
		}
	}
	lines(0, veth, 0)
	lines(SettleTime/2, veth, 0)
	lines(SettleTime, veth, 1)
	lines(time.Hour, veth, 1)
	lines(2*time.Hour, nil, 1)
	lines(3*time.Hour, veth, 1)
	lines(4*time.Hour, veth, 2)
}

type counts struct{ added, removed, resyncs chan int }

func (c counts) Added(n int)   { c.added <- n }
func (c counts) Removed(n int) { c.removed <- n }
func (c counts) Resynced()     { c.resyncs <- 1 }

// The watch lists at once, wakes for a new interface, and ends with its context.
func TestWatch(t *testing.T) {
	t.Parallel()
	n, err := testnode.New()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	c := counts{make(chan int, 100), make(chan int, 100), make(chan int, 100)}
	woken := make(chan struct{}, 100)
	w := &Watch{
		Resync: time.Hour, Recorder: c,
		Wake: func() { woken <- struct{}{} },
		Lost: func(err error) { t.Errorf("lost: %v", err) },
	}
	if w.Picture().Err != ErrNotListed {
		t.Errorf("the first picture: %+v", w.Picture())
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- n.Host().Do(func() error {
			w.Run(ctx)
			return nil
		})
	}()
	<-woken
	if p := w.Picture(); p.Err != nil || len(p.Interfaces) != 0 {
		t.Errorf("the picture of an empty node: %+v", p)
	}
	if _, err := n.AddPod("eni0123456789a"); err != nil {
		t.Fatal(err)
	}
	for range woken {
		if p := w.Picture(); len(p.Interfaces) == 1 && p.Interfaces[0].Name == "eni0123456789a" {
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

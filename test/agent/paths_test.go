package agent

import (
	"context"
	byteorder "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// service4 and service6 are addresses of Services that the node leads to the endpoint.
const (
	service4, service6 = "10.96.0.1", "fd00:96::1"
	nodePort           = 30080
)

// path is a way by which packets come to the endpoint when nothing guards it.
type path struct {
	name   string
	family imds.Family
	// setUp is a script for the node.
	setUp string
	// send sends a few packets. What it sends may be stopped, which is no error.
	send func(n *node) error
}

// dial sends on a new connection, from the namespace of a pod or another one. What reaches a closed port counts as having
// arrived.
func dial(from *testnode.Namespace, network, address string, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	conn, err := from.Dial(ctx, network, address)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, unix.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = conn.Write(make([]byte, size))
	return errors.Join(err, conn.Close())
}

// of is a way of sending to an address of the family.
func of(network string, size int, v4, v6 string, port int) func(imds.Family) func(*node) error {
	return func(f imds.Family) func(*node) error {
		to := map[imds.Family]string{imds.IPv4: v4, imds.IPv6: v6}[f]
		return func(n *node) error {
			return dial(n.pod.Namespace, network, net.JoinHostPort(to, fmt.Sprint(port)), size)
		}
	}
}

func endpoint(network string, size, port int) func(imds.Family) func(*node) error {
	return of(network, size, testnode.IMDSv4, testnode.IMDSv6, port)
}

// raw sends an ICMP echo request by a raw socket.
func raw(f imds.Family) func(*node) error {
	return func(n *node) error {
		return n.pod.Do(func() error {
			family, protocol, message := unix.AF_INET, unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}
			var to unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(f.Endpoint().Addr().AsSlice()[:4])}
			if f == imds.IPv6 {
				family, protocol, message = unix.AF_INET6, unix.IPPROTO_ICMPV6, []byte{128, 0, 0, 0, 0, 0, 0, 0}
				to = &unix.SockaddrInet6{Addr: f.Endpoint().Addr().As16()}
			}
			fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Sendto(fd, message, 0, to)
		})
	}
}

// frame sends a UDP packet as an Ethernet frame of its own making, past the pod's routing and netfilter.
func frame(n *node) error {
	host, err := n.Host().HardwareAddr(n.pod.Ifname)
	if err != nil {
		return err
	}
	return n.pod.Do(func() error {
		own, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		packet := make([]byte, 14+20+8)
		copy(packet, host)
		copy(packet[6:], own.HardwareAddr)
		byteorder.BigEndian.PutUint16(packet[12:], unix.ETH_P_IP)
		ip := packet[14:34]
		ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_UDP
		byteorder.BigEndian.PutUint16(ip[2:], 28)
		copy(ip[12:], n.pod.IPv4.AsSlice())
		copy(ip[16:], imds.IPv4.Endpoint().Addr().AsSlice())
		byteorder.BigEndian.PutUint16(ip[10:], checksum(ip))
		byteorder.BigEndian.PutUint16(packet[34:], 9)
		byteorder.BigEndian.PutUint16(packet[36:], 9)
		byteorder.BigEndian.PutUint16(packet[38:], 8)
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrLinklayer{Ifindex: own.Index})
	})
}

func checksum(header []byte) uint16 {
	sum := uint32(0)
	for i := 0; i < len(header); i += 2 {
		sum += uint32(byteorder.BigEndian.Uint16(header[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// paths are all by which a packet gets to the endpoint by way of the node's forwarding.
func paths() (list []path) {
	for _, f := range imds.Families {
		tables, nat := "iptables-nft", "-d "+service4+" -j DNAT --to-destination "+testnode.IMDSv4
		if f == imds.IPv6 {
			tables, nat = "ip6tables-nft", "-d "+service6+" -j DNAT --to-destination "+testnode.IMDSv6
		}
		dnat := fmt.Sprintf("%s -w -t nat -A PREROUTING %s", tables, nat)
		bridge := fmt.Sprintf("ip link add br0 type bridge; ip link set br0 up; ip link set %s master br0; "+
			"ip -%s route replace $POD dev br0", podLink, map[imds.Family]string{imds.IPv4: "4", imds.IPv6: "6"}[f])
		list = append(list,
			path{"TCP", f, "", endpoint("tcp", 10, 80)(f)},
			path{"TCP, another port", f, "", endpoint("tcp", 10, 8080)(f)},
			path{"UDP", f, "", endpoint("udp", 10, 80)(f)},
			path{"fragments", f, "", endpoint("udp", 4000, 80)(f)},
			path{"ICMP by a raw socket", f, "", raw(f)},
			path{"DNAT of a Service", f, dnat, of("tcp", 10, service4, service6, 80)(f)},
			path{"a bridge", f, bridge, endpoint("tcp", 10, 80)(f)},
		)
	}
	nodeAddress := netip.AddrPortFrom(netip.MustParseAddr("2001:db8::10"), nodePort)
	return append(list,
		path{"an IPv4-mapped address", imds.IPv4, "", func(n *node) error {
			return n.pod.Do(func() error {
				fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				to := netip.MustParseAddr("::ffff:" + testnode.IMDSv4)
				return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet6{Port: 80, Addr: to.As16()})
			})
		}},
		path{"AF_PACKET", imds.IPv4, "", frame},
		path{
			"a NodePort, from outside", imds.IPv6,
			fmt.Sprintf("ip6tables-nft -w -t nat -A PREROUTING -p tcp --dport %d -j DNAT --to-destination [%s]:80; "+
				"ip6tables-nft -w -t nat -A POSTROUTING -d %s -j MASQUERADE", nodePort, testnode.IMDSv6, testnode.IMDSv6),
			func(n *node) error { return dial(n.Outside(), "tcp", nodeAddress.String(), 10) },
		},
		path{
			"VXLAN that ends on the node", imds.IPv4,
			"ip link add flannel.1 type vxlan id 1 dstport 8472 local 10.0.0.10 nolearning; ip link set flannel.1 address 02:00:00:00:00:01 up; " +
				"ip addr add 10.244.0.0/32 dev flannel.1",
			func(n *node) error {
				script := "ip link show vx0 >/dev/null 2>&1 || { ip link add vx0 type vxlan id 1 dstport 8472 remote 10.0.0.10 local " +
					n.pod.IPv4.String() + "; ip link set vx0 up; ip addr add 10.244.1.1/32 dev vx0; " +
					"ip neigh add 10.244.0.0 lladdr 02:00:00:00:00:01 dev vx0; ip route add 10.244.0.0 dev vx0; " +
					"ip route add 169.254.169.254 via 10.244.0.0 dev vx0 onlink; }"
				if out, err := n.pod.Command(context.Background(), "sh", "-ec", script).CombinedOutput(); err != nil {
					return fmt.Errorf("%w: %s", err, out)
				}
				return dial(n.pod.Namespace, "udp", testnode.IMDSv4+":80", 10)
			},
		},
	)
}

const podLink = "veth01234567" // none that a pattern of the default names

// On every path packets reach the endpoint while nothing guards it, and on none when the route layer alone is in force.
func TestPaths(t *testing.T) { tryPaths(t, paths(), closed) }

// What bypasses FORWARD is not stopped by the packet layers, and with them alone the node is not reported as protected. If this
// test fails, a layer does more than the documents promise: say so there.
func TestBypassPaths(t *testing.T) {
	tryPaths(t, []path{{"macvlan", imds.IPv4, macvlan, func(n *node) error {
		if err := useMacvlan(n.pod); err != nil {
			return err
		}
		return dial(n.pod.Namespace, "tcp", testnode.IMDSv4+":80", 10)
	}}}, bypassed)
}

// macvlan is a script for the node that gives the namespace NETNS a macvlan on the uplink.
const macvlan = `ip link add mv0 link eth0 type macvlan mode bridge; ip link set mv0 netns "$NETNS"`

// useMacvlan leads a pod's packets to the endpoint out by its macvlan.
func useMacvlan(pod *testnode.Pod) error {
	script := "ip addr replace 10.0.0.99/24 dev mv0; ip link set mv0 up; ip route replace 169.254.169.254 via 10.0.0.1 dev mv0"
	if out, err := pod.Command(context.Background(), "sh", "-ec", script).CombinedOutput(); err != nil {
		return fmt.Errorf("using a macvlan: %w: %s", err, out)
	}
	return nil
}

// outcome is what the layers of packets do about a path.
type outcome int

const (
	closed   outcome = iota // by the route layer alone
	open                    // with both
	bypassed                // open, and the agent sees it
)

// tryPaths sends by each path, without a guard and with one.
func tryPaths(t *testing.T, list []path, want outcome) {
	t.Parallel()
	for _, p := range list {
		t.Run(strings.ReplaceAll(p.name, " ", "_")+"/"+string(p.family), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.layers = route.LayerName
			if want != closed {
				n.layers = rules.LayerName + "," + route.LayerName
			}
			var err error
			if n.pod, err = n.AddPod(podLink); err != nil {
				t.Fatal(err)
			}
			pod := map[imds.Family]netip.Addr{imds.IPv4: n.pod.IPv4, imds.IPv6: n.pod.IPv6}[p.family]
			n.sh("POD=%s NETNS=%s; %s", pod, n.pod.Path(), p.setUp)
			arrivals := countArrivals(t, n)
			send := func() {
				for range 5 {
					if err := p.send(n); err != nil {
						t.Errorf("sending: %v", err)
					}
				}
			}
			eventually(t, "packets arrive while nothing guards", func() bool { send(); return arrivals() > 0 })
			a := n.start("--interface", "eni+,veth+")
			eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
			before := arrivals()
			if want != closed {
				eventually(t, "packets arrive as before", func() bool { send(); return arrivals() > before })
				eventually(t, fmt.Sprintf("the agent's word that the node is protected is %t", want == open), func() bool {
					return (a.metric("imds_guard_protected") == 1) == (want == open)
				})
				return
			}
			send()
			n.sh("sleep 0.2") // for what is under way
			if reached := arrivals() - before; reached != 0 {
				t.Errorf("%d packets have come to the endpoint", reached)
			}
		})
	}
}

// A connection that was open before is cut.
func TestOpenConnectionIsCutByTheRoute(t *testing.T) {
	t.Parallel()
	for _, v := range variants[:2] {
		n := newNode(t)
		n.layers = route.LayerName
		conn, err := n.pod.Dial(t.Context(), "tcp", net.JoinHostPort(v.address(), "80"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ask := func(patience time.Duration) bool {
			_ = conn.SetDeadline(time.Now().Add(patience))
			if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
				return false
			}
			k, _ := conn.Read(make([]byte, 4096))
			return k > 0
		}
		if !ask(deadline) {
			t.Fatalf("%s: no answer on the connection before", v.family)
		}
		n.startReady()
		if ask(time.Second) {
			t.Errorf("%s: the connection goes on", v.family)
		}
	}
}

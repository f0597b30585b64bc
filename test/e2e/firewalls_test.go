//go:build e2e

// Scenario 10: the other programs that manage a node's firewall, kube-proxy among them, start, reload and end without pause.

package e2e

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	stormSeed = flag.Uint64("storm.seed", uint64(time.Now().UnixNano()), "the order in which firewalls are started and reloaded")
	stormTime = flag.Duration("storm.time", time.Minute, "for how long")
)

// firewallCommands are those of images/firewalls/firewalls.
var firewallCommands = []string{
	"dockerd-restart", "firewalld-restart", "firewalld-reload", "firewalld-complete-reload", "ufw-enable", "ufw-reload", "ufw-disable",
	"netfilter-persistent-reload", "netfilter-persistent-flush",
}

// Each of them alone lets a pod through. In random order, and with an agent that is killed now and then, they don't open the
// endpoint for one packet.
func TestFirewalls(t *testing.T) {
	for _, backend := range []string{"nft", "legacy"} {
		t.Run(backend, func(t *testing.T) {
			begin(t)
			t.Cleanup(func() { // what they have done goes with the network namespace, and kube-proxy's mode, too
				if t.Failed() {
					node.dump(os.Stderr)
				}
				_, _ = node.Try("kubectl", "delete", "pods", "--all", "--force", "--grace-period=0")
				node.Reboot(t)
				node.StartKubelet(t)
			})
			run := node.firewalls(t, backend)

			asker := node.RunAsker(t, "asker", false)
			for _, command := range firewallCommands {
				step(t, "without a guard: %s", command)
				if out, err := run(command); err != nil {
					t.Fatalf("%s: %v\n%s", command, err, out)
				}
				asker.WaitAnswers(t, 3)
			}
			node.Kubectl(t, "delete", "pod", "asker", "--grace-period=0", "--force")

			manifest, err := os.ReadFile(standard.manifest)
			if err != nil {
				t.Fatal(err)
			}
			option := regexp.MustCompile(`(\n *- )--interface=eni\+\n`)
			node.Apply(t, option.ReplaceAllString(string(manifest), "$0$1--backend="+backend+"$1--layers=iptables,route\n"))
			node.WaitAgent(t)
			node.waitAllLayers(t)
			asker, control := node.RunAsker(t, "flood", false, "-every", "3ms", "-timeout", "100ms"), node.RunAsker(t, "control", true)
			arrivals := node.countPodPackets(t)

			step(t, "the storm begins: -storm.seed=%d", *stormSeed)
			proxy := node.proxyConfig(t)
			random := rand.New(rand.NewPCG(*stormSeed, 0))
			done := map[string]int{}
			for began := time.Now(); time.Since(began) < *stormTime; {
				i := random.IntN(len(firewallCommands) + 3)
				command := "agent killed"
				switch i - len(firewallCommands) {
				case 0:
					command = "kube-proxy iptables"
					node.startProxy(t, inMode(proxy, "iptables"))
				case 1:
					command = "kube-proxy nftables"
					node.startProxy(t, inMode(proxy, "nftables"))
				case 2:
					_, _ = node.Try("pkill", "-KILL", "-x", "imds-guard") // it may be down: the kubelet waits longer each time
				default:
					command = firewallCommands[i]
					// What another one of them has left may be in its way. That it works alone was seen.
					if _, err := run(command); err != nil {
						command += ", in vain"
					}
				}
				done[command]++
			}
			step(t, "the storm has ended: %v", done)
			worked := 0
			for _, command := range firewallCommands {
				worked += done[command]
			}
			if worked < 3 {
				t.Errorf("only %d commands of the firewalls did anything: there was no storm", worked)
			}
			asker.WaitAttempts(t, 20)
			control.WaitAnswers(t, 5)
			asked := asker.Never(t)
			if reached := arrivals(); reached != 0 {
				t.Errorf("%d packets of the pod reached the endpoint; the order is that of -storm.seed=%d", reached, *stormSeed)
			}
			node.waitAllLayers(t)
			figures.add(t, "attempts while firewalls, kube-proxy and agent start again and again; answers", fmt.Sprintf("%d; %d", asked, asker.Answers()))

			step(t, "the guard is removed: the same pod is served, whatever the firewalls have left")
			node.Kubectl(t, "-n", namespace, "delete", "daemonset", "imds-guard", "--cascade=foreground")
			node.removeRules(t)
			asker.WaitAnswers(t, 10)
			if arrivals() == 0 {
				t.Error("the pod is served, and no packet was counted: nor would one have been in the storm")
			}
		})
	}
}

// firewalls starts a pod with them and returns what runs one of their commands in it.
func (n *Node) firewalls(t *testing.T, backend string) (run func(command string) (string, error)) {
	t.Helper()
	n.RunPod(t, Pod{Name: "firewalls", Image: "e2e.local/firewalls:1", Args: []string{backend}, HostNetwork: true, Privileged: true})
	wait(t, "the firewalls to be prepared", func() error {
		if out := n.Kubectl(t, "logs", "firewalls"); !strings.Contains(out, "prepared") {
			return fmt.Errorf("they say %q", out)
		}
		return nil
	})
	return func(command string) (string, error) {
		return n.Try("kubectl", "exec", "firewalls", "--", "timeout", "-k", "1", "60", "firewalls", command)
	}
}

// waitAllLayers waits until no layer is missing from the node.
func (n *Node) waitAllLayers(t *testing.T) {
	t.Helper()
	wait(t, "all layers to be in force", func() error {
		degraded, err := n.metric("imds_guard_degraded")
		if err != nil || degraded != 0 {
			return fmt.Errorf("imds_guard_degraded is %v, %v", degraded, err)
		}
		return nil
	})
}

// countPodPackets counts, from now on, the packets of pods that come to the endpoint.
func (n *Node) countPodPackets(t *testing.T) (arrivals func() int) {
	t.Helper()
	outside := []string{"ip", "netns", "exec", "outside", "nft"}
	n.Exec(t, append(outside, "table ip count { chain input { type filter hook input priority 0; "+
		"ip saddr "+podNetwork+"0.0/16 ip daddr "+imdsIP+" counter; }; }")...)
	t.Cleanup(func() { _, _ = n.Try(append(outside, "delete table ip count")...) })
	counter := regexp.MustCompile(`counter packets (\d+)`)
	return func() int {
		list := n.Exec(t, append(outside, "list", "table", "ip", "count")...)
		match := counter.FindStringSubmatch(list)
		if match == nil {
			t.Fatalf("no counter in %s", list)
		}
		packets, err := strconv.Atoi(match[1])
		if err != nil {
			t.Fatal(err)
		}
		return packets
	}
}

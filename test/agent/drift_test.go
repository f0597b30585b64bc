// Each kind of drift, made by the tools that make it in life.

package agent

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// neighbours are rules of others as they stand on a node: kube-proxy's, docker's, an admin's, with what parsers trip over.
const neighbours = `*filter
:KUBE-FORWARD - [0:0]
:DOCKER-USER - [0:0]
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -j DOCKER-USER
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i docker0 ! -o docker0 -j ACCEPT
-A FORWARD -m comment --comment "say \"hi\" -j DROP" -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A DOCKER-USER -j RETURN
COMMIT
`

// lookalikes are rules of others that differ from ours in one thing.
func lookalikes(v variant) []string {
	a := v.family.Endpoint().String()
	return []string{
		"-d " + a + " -j DROP",
		"-d " + a + " -i eni+ -p tcp -j DROP",
		"-d " + a + " -i docker0 -j DROP",
		"-d " + a + " -i eni+ -m comment --comment ours -j DROP",
		"-d " + a + " -i eni+ -j LOG",
	}
}

func (n *node) addNeighbours(v variant) {
	n.t.Helper()
	n.sh("cat <<'E' | %s-restore --noflush\n%sE", v.iptables(), neighbours)
}

func TestDriftIsRepaired(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		drifts := []struct {
			name   string
			reason layer.State
			tamper string
		}{
			{"iptables -D", layer.Missing, "$T -D ${OURS#-A }"},
			{"iptables -F", layer.Missing, "$T -F FORWARD"},
			{"restore that flushes", layer.Missing, `printf '*filter\n:FORWARD ACCEPT\n-A FORWARD -j ACCEPT\nCOMMIT\n' | $T-restore`},
			{"restore that inserts", rules.Shadowed, `printf '*filter\n-I FORWARD -j ACCEPT\nCOMMIT\n' | $T-restore --noflush`},
			{"accept above", rules.Shadowed, "$T -I FORWARD 1 -i eni+ -j ACCEPT"},
			{"established above", rules.Shadowed, "$T -I FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT"},
			{"kube-proxy's jump", rules.Shadowed, `$T -N KUBE-FW; $T -I FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-FW`},
			{"docker's jump", rules.Shadowed, "$T -N DOCKER-X; $T -I FORWARD -j DOCKER-X"},
			{"log above", rules.Displaced, `$T -I FORWARD -j LOG --log-prefix "a b "`},
			{"accept to elsewhere above", rules.Displaced, "$T -I FORWARD -i docker0 -j ACCEPT"},
			{"second copy", rules.Duplicate, "$T -A ${OURS#-A }"},
			{"third copy on top", rules.Duplicate, `printf "*filter\n-I ${OURS#-A }\n-I ${OURS#-A }\nCOMMIT\n" | $T-restore --noflush`},
			{"rule replaced", layer.Missing, "$T -R FORWARD 1 -j ACCEPT"},
		}
		if v.backend == rules.NFT {
			drifts = append(drifts, struct {
				name   string
				reason layer.State
				tamper string
			}{"nft flush ruleset", layer.Missing, "nft flush ruleset"})
		}
		for _, d := range drifts {
			t.Run(v.String()+"/"+d.name, func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				a := n.startReady("--backend", string(v.backend), "--resync-period", "2s")
				n.sh("T='%s -w'; OURS='%s'; %s", v.iptables(), v.ours(),
					strings.NewReplacer("$T-restore", v.iptables()+"-restore").Replace(d.tamper))
				foreign := n.foreign()
				eventually(t, "the rule is on top again", func() bool { return n.onTop(v) })
				eventually(t, "the drift is counted", func() bool { return a.drift(v, d.reason) >= 1 })
				eventually(t, "the repair is counted", func() bool {
					return a.metric(fmt.Sprintf(`imds_guard_repairs_total{family="%s",layer="iptables",result="success"}`, v.family)) >= 1
				})
				eventually(t, "the agent is ready again", a.ready)
				n.mustBeBlocked(v)
				if after := n.foreign(); after != foreign {
					t.Errorf("foreign rules changed from\n%s\nto\n%s", foreign, after)
				}
			})
		}
	}
}

// A start on a realistic node: foreign rules stay byte for byte, through start, drift, stop and cleanup.
func TestForeignRulesStay(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.addNeighbours(v)
			for _, rule := range lookalikes(v) {
				n.sh("%s -w -A FORWARD %s", v.iptables(), rule)
			}
			// Ours is added and taken away among them: all but it must stay, in its order.
			before := n.forward(v)
			foreign := n.foreign()
			a := n.startReady("--backend", string(v.backend))
			check := func(when string, want []string) {
				t.Helper()
				if got := n.forward(v); strings.Join(got, "\n") != strings.Join(want, "\n") {
					t.Errorf("FORWARD %s is\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(want, "\n"))
				}
				if got := n.foreign(); got != foreign {
					t.Errorf("foreign rules %s are\n%s\nwant\n%s", when, got, foreign)
				}
			}
			check("after the start", append([]string{v.ours()}, before...))
			n.sh("%s -w -D FORWARD 1; %s -w -A FORWARD %s", v.iptables(), v.iptables(), strings.TrimPrefix(v.ours(), "-A FORWARD"))
			eventually(t, "the rule is on top again", func() bool { return n.onTop(v) })
			check("after a repair", append([]string{v.ours()}, before...))
			a.kill()
			check("after the agent was killed", append([]string{v.ours()}, before...))
			if code, _, stderr := n.guard("cleanup"); code != 0 {
				t.Fatalf("cleanup: exit %d: %s", code, stderr)
			}
			check("after cleanup", before)
		})
	}
}

// A rule that user data inserted is taken over in place, neither doubled nor replaced.
func TestAdoptsTheRuleOfUserData(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.sh("%s --insert FORWARD 1 --in-interface eni+ --destination %s --jump DROP", v.iptables(), v.family.Endpoint())
			n.mustBeBlocked(v)
			packets := n.packets(v)
			a := n.startReady("--backend", string(v.backend))
			if list := n.forward(v); len(list) != 1 || list[0] != v.ours() {
				t.Errorf("FORWARD is %q", list)
			}
			if now := n.packets(v); packets == 0 || now < packets {
				t.Errorf("the rule was put in anew: its count of packets went from %d to %d", packets, now)
			}
			n.sh("%s -w -C FORWARD -i eni+ -d %s -j DROP", v.iptables(), v.address())
			if a.metric(fmt.Sprintf(`imds_guard_repairs_total{family="%s",layer="iptables",result="success"}`, v.family)) != 0 {
				t.Error("a repair was counted")
			}
		})
	}
}

// A neighbour that returns to the top forever shows in a metric and one log line, without using up the node's CPU.
func TestFightOverTheTop(t *testing.T) {
	t.Parallel()
	for _, v := range variants[:1] {
		n := newNode(t)
		a := n.startReady("--backend", string(v.backend))
		ctx, stop := context.WithCancel(context.Background())
		fight := n.Command(ctx, "sh", "-c", fmt.Sprintf(
			"T=%s; $T -N TOP; while :; do [ \"$($T -S FORWARD | sed -n 2p)\" = '-A FORWARD -j TOP' ] || { $T -D FORWARD -j TOP 2>/dev/null; $T -I FORWARD -j TOP; }; done",
			v.iptables()))
		if err := fight.Start(); err != nil {
			t.Fatal(err)
		}
		contended := fmt.Sprintf(`imds_guard_contended{family="%s",layer="iptables"}`, v.family)
		eventually(t, "the fight is seen", func() bool { return a.metric(contended) == 1 })
		eventually(t, "many repairs were undone", func() bool { return a.drift(v, rules.Shadowed) > 20 })
		stop()
		_ = fight.Wait()
		eventually(t, "the rule is on top after the fight", func() bool { return n.onTop(v) && a.ready() })
		if lines := a.log.Count("something keeps undoing the repairs", "family="+string(v.family)); lines != 1 {
			t.Errorf("%d log lines say that there is a fight", lines)
		}
		if lines := a.log.Count("level=WARN", "rules drifted", "family="+string(v.family)); lines > 6 {
			t.Errorf("%d log lines of single drifts", lines)
		}
	}
}

// An open keep-alive connection is cut at the start, in spite of the accept for established connections.
func TestOpenConnectionIsCut(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.sh("%s -w -I FORWARD -m conntrack --ctstate ESTABLISHED -j ACCEPT", v.iptables())
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			conn, err := n.pod.Dial(ctx, "tcp", net.JoinHostPort(v.address(), "80"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			ask := func(wait time.Duration) error {
				if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
					return err
				}
				if _, err := fmt.Fprintf(conn, "GET /latest/meta-data/instance-id HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					return err
				}
				_, err := conn.Read(make([]byte, 4096))
				return err
			}
			if err := ask(10 * time.Second); err != nil {
				t.Fatalf("before the start: %v", err)
			}
			requests := n.IMDS().Requests()
			n.startReady("--backend", string(v.backend))
			if err := ask(500 * time.Millisecond); err == nil || n.IMDS().Requests() != requests {
				t.Error("the open connection still gets answers")
			}
		})
	}
}

// Both verdicts stop pods, in every family and backend at once, and nobody else.
func TestWhoIsBlocked(t *testing.T) {
	t.Parallel()
	for _, backend := range []rules.Backend{rules.NFT, rules.Legacy} {
		for _, verdict := range policy.Verdicts {
			t.Run(string(backend)+"/"+string(verdict), func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				n.startReady("--backend", string(backend), "--verdict", string(verdict))
				ctx, cancel := context.WithTimeout(context.Background(), deadline)
				defer cancel()
				for _, f := range imds.Families {
					v := variant{backend, f}
					if want, got := v.desired(verdict, "eni+"), n.forward(v); strings.Join(got, "\n") != strings.Join(want, "\n") {
						t.Errorf("FORWARD is %q, want %q", got, want)
					}
					n.mustBeBlocked(v)
					if _, err := n.Host().Get(ctx, v.url()); err != nil {
						t.Errorf("the node itself is not served: %v", err)
					}
					if verdict == policy.Reject {
						_, err := n.pod.Dial(ctx, "tcp", net.JoinHostPort(v.address(), "80"))
						if err == nil || !strings.Contains(err.Error(), "connection refused") {
							t.Errorf("a rejected connect ends in %v", err)
						}
					}
				}
				for _, address := range append([]string{testnode.Elsewhere4, testnode.Elsewhere6}, testnode.Neighbours...) {
					if _, err := n.pod.Get(ctx, "http://"+net.JoinHostPort(address, "80")+"/"); err != nil {
						t.Errorf("neighbour %s: %v", address, err)
					}
				}
			})
		}
	}
}

// The packet count is the kernel's, and never goes back when the rule is put in again.
func TestBlockedPacketsSurviveReinsertion(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			a := n.startReady("--backend", string(v.backend), "--resync-period", "200ms")
			blocked := fmt.Sprintf(`imds_guard_blocked_packets_total{family="%s",layer="iptables"}`, v.family)
			n.mustBeBlocked(v)
			eventually(t, "packets are counted", func() bool { return a.metric(blocked) > 0 })
			before := a.metric(blocked)
			n.sh("%s -w -F FORWARD", v.iptables())
			eventually(t, "the rule is on top again", func() bool { return n.onTop(v) })
			if now := a.metric(blocked); now < before {
				t.Errorf("the count went from %v to %v", before, now)
			}
			n.mustBeBlocked(v)
			eventually(t, "more packets are counted", func() bool { return a.metric(blocked) > before })
		})
	}
}

// Stopping: whatever ends the agent leaves the rules, and only cleanup removes them.

package agent

import (
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func TestRulesOutliveTheAgent(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL, syscall.SIGABRT} {
			t.Run(v.String()+"/"+s.String(), func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				a := n.startReady("--backend", string(v.backend))
				a.signal(s)
				<-a.done
				if code := a.cmd.ProcessState.ExitCode(); (s == syscall.SIGTERM || s == syscall.SIGINT) && code != 0 {
					t.Errorf("exit %d", code)
				}
				if !n.onTop(v) {
					t.Errorf("FORWARD is %q", n.forward(v))
				}
				n.mustBeBlocked(v)
			})
		}
	}
}

// Killed at any moment of a repair, the agent leaves no half of one, and the next one mends what is left to mend.
func TestKilledDuringARepair(t *testing.T) {
	t.Parallel()
	for _, v := range variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			n.addNeighbours(v)
			foreign := n.foreign()
			before := n.forward(v)
			for round := range 15 {
				a := n.startReady("--backend", string(v.backend))
				tamper := []string{"-D FORWARD 1", "-I FORWARD 1 -m comment --comment above -j ACCEPT"}[round%2]
				n.sh("%s -w %s", v.iptables(), tamper)
				time.Sleep(rand.N(15 * time.Millisecond)) // no expectation hangs on how long
				a.kill()
				// The command that was running may still be at work: it is not the agent's thread.
				n.sh("%s -w -S FORWARD >/dev/null", v.iptables())
				n.sh("%s -w -D FORWARD -m comment --comment above -j ACCEPT 2>/dev/null || true", v.iptables())
				if copies := count(n.forward(v), v.ours()); copies > 1 {
					t.Errorf("round %d: %d copies", round, copies)
				}
			}
			n.startReady("--backend", string(v.backend))
			if got, want := n.forward(v), append([]string{v.ours()}, before...); strings.Join(got, "\n") != strings.Join(want, "\n") {
				t.Errorf("FORWARD is %q, want %q", got, want)
			}
			if got := n.foreign(); got != foreign {
				t.Errorf("foreign rules changed from\n%s\nto\n%s", foreign, got)
			}
		})
	}
}

// An upgrade, also to other flags, never opens the endpoint: a stream of requests through all of it gets no answer.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	n.startReady().kill() // by iptables alone, as it was before there was another layer
	n.mustBeBlocked(v)
	requests := n.IMDS().Requests()
	done := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-done:
				return
			default:
				if n.answered(v) {
					t.Error("a pod got an answer from the endpoint")
				}
			}
		}
	}()
	both := rules.LayerName + "," + route.LayerName
	for _, next := range []struct {
		layers string
		flags  []string
	}{
		{both, nil},
		{both, []string{"--verdict", "reject"}},
		{both, []string{"--interface", "eni+,vlan+"}},
		{route.LayerName, nil},
		{rules.LayerName, []string{"--verdict", "drop"}},
		{rules.LayerName, []string{"--backend", "legacy"}},
		{both, nil},
	} {
		n.layers = next.layers
		a := n.startReady(next.flags...)
		a.signal(syscall.SIGTERM)
		<-a.done
	}
	close(done)
	<-stopped
	if now := n.IMDS().Requests(); now != requests {
		t.Errorf("%d requests reached the endpoint", now-requests)
	}
}

// Everything that was ever installed goes, whatever flags it was installed with, and nothing else; twice is fine.
func TestCleanup(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, v := range variants {
		n.addNeighbours(v)
		for _, rule := range lookalikes(v) {
			n.sh("%s -w -A FORWARD %s", v.iptables(), rule)
		}
	}
	foreign := n.foreign()
	for _, flags := range [][]string{
		{"--backend", "nft"},
		{"--backend", "legacy", "--verdict", "reject", "--interface", "vlan+"},
		{"--backend", "nft", "--verdict", "reject", "--interface", "eni+,cali+"},
	} {
		a := n.startReady(flags...)
		eventually(t, "the record is written", func() bool {
			record := n.record()
			for _, p := range strings.Split(flags[len(flags)-1], ",") {
				if strings.HasSuffix(p, "+") && !strings.Contains(record, p+"\n") {
					return false
				}
			}
			return true
		})
		a.kill()
	}
	for _, v := range variants {
		n.sh("%s -w -A %s", v.iptables(), strings.TrimPrefix(v.ours(), "-A ")) // a second copy
	}
	if n.foreign() == foreign {
		t.Fatal("nothing was installed; then this test proves nothing")
	}
	code, stdout, stderr := n.guard("cleanup")
	if code != 0 || strings.Count(stdout, "removed ") != 4 {
		t.Errorf("cleanup: exit %d\n%s%s", code, stdout, stderr)
	}
	if got := n.foreign(); got != foreign {
		t.Errorf("after cleanup the node has\n%s\nwant\n%s", got, foreign)
	}
	for _, v := range variants {
		if c := count(n.forward(v), v.ours()); c != 0 {
			t.Errorf("%s: %d copies left", v, c)
		}
	}
	if code, stdout, _ := n.guard("cleanup"); code != 0 || stdout != "nothing to remove\n" {
		t.Errorf("cleanup again: exit %d, %q", code, stdout)
	}
}

// A cleanup beside a running agent would be undone by it. It must not leave the node open for a moment either.
func TestCleanupBesideAnAgent(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	v := variants[0]
	a := n.startReady()
	eventually(t, "the agent has marked that it runs", func() bool {
		return strings.Contains(n.record(), "eni+")
	})
	if code, stdout, stderr := n.guard("cleanup"); code != 1 || stdout != "" || !strings.Contains(stderr, "an agent is running on this node") {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	n.mustBeBlocked(v)
	a.kill() // not even asked: the kernel gives its lock back
	if code, stdout, stderr := n.guard("cleanup"); code != 0 || !strings.Contains(stdout, "removed ") {
		t.Errorf("after its end: exit %d: %s%s", code, stdout, stderr)
	}
}

// cleanup on a node that never saw the agent changes nothing, and loads no legacy table.
func TestCleanupOfNothing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	if code, stdout, stderr := n.guard("cleanup"); code != 0 || stdout != "nothing to remove\n" {
		t.Errorf("exit %d: %s%s", code, stdout, stderr)
	}
	if left := n.sh("nft list ruleset; cat /proc/net/ip_tables_names /proc/net/ip6_tables_names"); left != "" {
		t.Errorf("cleanup made %s", left)
	}
}

// The pods are served again after cleanup: proof that the rule, and only the rule, kept them away.
func TestServedBeforeAndAfter(t *testing.T) {
	t.Parallel()
	for _, backend := range []rules.Backend{rules.NFT, rules.Legacy} {
		t.Run(string(backend), func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			served := func(when string, want bool) {
				t.Helper()
				for _, v := range variants[:2] {
					if !want {
						n.mustBeBlocked(v)
					} else if !n.served(v) {
						t.Errorf("%s: the pod is not served %s", v.family, when)
					}
				}
			}
			served("before the start", true)
			a := n.startReady("--backend", string(backend))
			served("while the agent runs", false)
			a.kill()
			served("after the agent was killed", false)
			if code, _, stderr := n.guard("cleanup"); code != 0 {
				t.Fatal(stderr)
			}
			served("after cleanup", true)
		})
	}
}

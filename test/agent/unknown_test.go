// What can't be read is unknown, and unknown is not protected.

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// nftRules lists FORWARD as nftables has it, for when iptables can't.
func (n *node) nftRules(v variant) string {
	family := "ip"
	if v.family == imds.IPv6 {
		family = "ip6"
	}
	return n.sh("nft list chain %s filter FORWARD", family)
}

// oursFirst finds our IPv4 rule behind the chain's policy.
var oursFirst = regexp.MustCompile(`policy accept;\s+iifname "eni\*" ip daddr 169.254.169.254 counter packets \d+ bytes \d+ drop`)

// Native nftables rules above ours: iptables-nft refuses to list some, omits others, and misprints yet others. nft also allows
// chains named like a target. Each of these lets the pod through until ours are above it.
func TestNativeRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, chains, rule string }{
		{"makes iptables -S fail", "", "ct state new,established counter accept"},
		{"is left out by iptables -S", "", "ip daddr != 10.0.0.0-11.0.0.0 accept"},
		{"is misprinted as harmless", "", "ip daddr > 10.0.0.1 accept"},
		{"is misprinted as negated", "", "ip daddr != 10.0.0.1 ip daddr 169.254.169.254 accept"},
		{"is misprinted as negated, by interface", "", `iifname != lo iifname "eni*" accept`},
		{"looks like no verdict", "", "ip daddr vmap { 169.254.169.254 : accept }"},
		{"looks like a drop and accepts", "", "ip saddr vmap { 10.1.0.1 : accept } drop"},
		{"jumps to a chain called LOG", "LOG", "jump LOG"},
		{"jumps to a chain called DROP, and looks like ours", "DROP", `iifname "eni*" ip daddr 169.254.169.254 counter jump DROP`},
		{"goes to a chain called REJECT", "REJECT", "goto REJECT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := variants[0]
			n := newNode(t)
			if c.chains != "" {
				n.sh("iptables-nft -N SOME; nft 'add chain ip filter %s; add rule ip filter %s accept'", c.chains, c.chains)
			}
			// The control: above ours, the rule does let the pod through.
			n.sh("iptables-nft -I %s; nft 'insert rule ip filter FORWARD %s'", strings.TrimPrefix(v.ours(), "-A "), c.rule)
			if !n.served(v) {
				t.Fatal("the pod is blocked; then this test proves nothing")
			}
			n.sh("nft flush chain ip filter FORWARD")
			a := n.startReady("--backend", "nft", "--resync-period", "1s")
			n.sh(`nft 'insert rule ip filter FORWARD %s'`, c.rule)
			eventually(t, "the drift is counted", func() bool { return a.drift(v, rules.Shadowed) == 1 })
			eventually(t, "the agent is ready again", a.ready)
			n.mustBeBlocked(v)
			mustBeOursFirst := func(rules int) {
				t.Helper()
				kernel := n.nftRules(v)
				if !oursFirst.MatchString(kernel) || strings.Count(kernel, "169.254.169.254 counter packets")-strings.Count(kernel, "jump DROP") != 1 {
					t.Errorf("ours is not on top, once:\n%s", kernel)
				}
			}
			mustBeOursFirst(2)
			// It stays so over several looks, without a repair.
			repairs := `imds_guard_repairs_total{family="ipv4",layer="iptables",result="success"}`
			before := a.metric(repairs)
			a.awaitLooks(v, 3)
			if now := a.metric(repairs); now != before {
				t.Errorf("%v repairs, then %v", before, now)
			}
			eventually(t, "the agent is still ready", a.ready)
			if code, stdout, _ := n.guard("check"); code != 0 {
				t.Errorf("check ends with %d and says\n%s", code, stdout)
			}
			// What is missing comes back, whatever iptables can list.
			handle := n.sh(`nft -a list chain ip filter FORWARD | sed -n 's/.*"eni\*" ip daddr 169.254.169.254 counter packets .* drop # handle //p'`)
			n.sh("nft delete rule ip filter FORWARD handle %s", strings.TrimSpace(handle))
			eventually(t, "the rule is there again", func() bool { return oursFirst.MatchString(n.nftRules(v)) })
			n.mustBeBlocked(v)
			// cleanup takes ours, and leaves the other.
			a.kill()
			if code, stdout, stderr := n.guard("cleanup"); code != 0 || !strings.Contains(stdout, "removed 1 rule (ipv4, iptables-nft)") {
				t.Errorf("cleanup beside the native rule: exit %d, %s%s", code, stdout, stderr)
			}
			if !n.served(v) {
				t.Errorf("the pod is blocked after cleanup by\n%s", n.nftRules(v))
			}
		})
	}
}

// A rule that drops less than ours, and that iptables prints like ours, is not ours.
func TestLookAlikeThatDropsLess(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	n.sh(`iptables-nft -A FORWARD -j ACCEPT; iptables-nft -F FORWARD; nft 'add rule ip filter FORWARD iifname "eni*" ip daddr 169.254.169.254 ip saddr { 1.2.3.4, 1.2.3.5 } counter drop'`)
	if !n.served(v) {
		t.Fatal("the pod is blocked; then this test proves nothing")
	}
	a := n.startReady("--backend", "nft")
	n.mustBeBlocked(v)
	if code, stdout, _ := n.guard("check"); code != 0 || strings.Contains(stdout, "2 times") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	a.kill()
	if code, _, stderr := n.guard("cleanup"); code != 0 || !strings.Contains(n.nftRules(v), "1.2.3.4") || !n.served(v) {
		t.Errorf("cleanup: exit %d %s, and the chain is\n%s", code, stderr, n.nftRules(v))
	}
}

// A FORWARD that was made dormant, or deleted and recreated differently from how iptables makes it. It is not for us to put
// that chain right: pods are stopped beside it, and the detail says what is wrong.
func TestForeignForward(t *testing.T) {
	t.Parallel()
	const ours = `add rule ip filter FORWARD iifname "eni*" ip daddr 169.254.169.254 counter drop`
	for _, c := range []struct {
		name, script string
		words        string // empty: the rules in it work
	}{
		{"input", "delete chain ip filter FORWARD; add chain ip filter FORWARD { type filter hook input priority 0; }", "type filter at hook input"},
		{"nat", "delete chain ip filter FORWARD; add chain ip filter FORWARD { type nat hook postrouting priority 100; }", "type nat at hook postrouting"},
		{"no hook", "delete chain ip filter FORWARD; add chain ip filter FORWARD", "has no hook"},
		{"dormant", "add table ip filter { flags dormant; }", "dormant"},
		{"another priority", "delete chain ip filter FORWARD; add chain ip filter FORWARD { type filter hook forward priority 300; }", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := variants[0]
			n := newNode(t)
			// The control: in such a chain our rule is there, and does nothing.
			n.sh("iptables-nft -A FORWARD -j ACCEPT; iptables-nft -F FORWARD; nft '%s; %s'", c.script, ours)
			if n.served(v) != (c.words != "") {
				t.Fatalf("served %t; then this test proves nothing", n.served(v))
			}
			n.sh("nft delete table ip filter")

			a := n.startReady("--backend", "nft", "--resync-period", "1s")
			n.sh("nft '%s; %s'", c.script, ours)
			foreign := n.sh("nft list table ip filter | sed 's/counter packets.*bytes [0-9]*//'")
			a.awaitLooks(v, 3)
			eventually(t, "the agent is ready", a.ready)
			n.mustBeBlocked(v)
			if now := n.sh("nft list table ip filter | sed 's/counter packets.*bytes [0-9]*//'"); now != foreign {
				t.Errorf("the table was changed from\n%sto\n%s", foreign, now)
			}
			if c.words == "" {
				return
			}
			if a.log.Count(c.words) == 0 {
				t.Errorf("the log does not say %q", c.words)
			}
			if code, stdout, _ := n.guard("check"); code != 0 || !strings.Contains(stdout, c.words) {
				t.Errorf("check ends with %d and says\n%s", code, stdout)
			}
			// Our own table is kept like the other, and outlives the agent; only cleanup takes it.
			n.sh("nft delete table ip imds-guard")
			eventually(t, "our own table is there again", func() bool { return strings.Contains(n.sh("nft list tables"), "imds-guard") && a.ready() })
			a.kill()
			n.mustBeBlocked(v)
			if code, stdout, stderr := n.guard("cleanup"); code != 0 || !strings.Contains(stdout, "(ipv4, iptables-nft)") {
				t.Errorf("cleanup: exit %d: %s%s", code, stdout, stderr)
			}
			if left := n.sh("nft list tables"); strings.Contains(left, "imds-guard") || !n.served(v) {
				t.Errorf("after cleanup there are\n%s", left)
			}
			// An agent that finds such a chain when it starts has never seen how iptables writes the rules.
			n.startReady("--backend", "nft")
			n.mustBeBlocked(v)
		})
	}
}

// In a chain that iptables can't list, only what is missing is put back, however often.
func TestUnreadableChainWithSeveralPatterns(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	n.startReady("--backend", "nft", "--interface", "eni+,vlan+")
	n.sh("nft insert rule ip filter FORWARD ct state established counter accept")
	for range 10 {
		handle := n.sh(`nft -a list chain ip filter FORWARD | sed -n 's/.*"eni\*".*handle //p'`)
		n.sh("nft delete rule ip filter FORWARD handle %s", strings.TrimSpace(handle))
		eventually(t, "the rule is there again", func() bool { return strings.Contains(n.nftRules(v), `"eni*"`) })
	}
	if eni, vlan := strings.Count(n.nftRules(v), `"eni*"`), strings.Count(n.nftRules(v), `"vlan*"`); eni != 1 || vlan != 1 {
		t.Errorf("%d and %d copies in\n%s", eni, vlan, n.nftRules(v))
	}
}

// Another process holds the xtables lock for longer than we wait.
func TestLockIsHeld(t *testing.T) {
	t.Parallel()
	v := variant{rules.Legacy, imds.IPv4}
	n := newNode(t)
	n.sh("touch /run/xtables.lock /run/held; setsid sh -c 'exec 9</run/xtables.lock; flock 9; while [ -e /run/held ]; do sleep 0.1; done' >/dev/null 2>&1 &")
	n.sh("while flock -n /run/xtables.lock true; do sleep 0.1; done")
	a := n.start("--backend", "legacy")
	eventually(t, "the time-out is counted", func() bool {
		return a.metric(`imds_guard_iptables_errors_total{family="ipv4",operation="insert",reason="lock"}`)+
			a.metric(`imds_guard_iptables_errors_total{family="ipv4",operation="list",reason="lock"}`) >= 1
	})
	if a.ready() {
		t.Error("ready without the lock")
	}
	n.sh("rm /run/held")
	eventually(t, "the rule is in", func() bool { return n.onTop(v) && a.ready() })
	if list := n.forward(v); len(list) != 1 {
		t.Errorf("FORWARD is %q", list)
	}
}

// fakeBin puts a script in the place of an iptables command, which may call the real one as $REAL.
func fakeBin(t *testing.T, name, script string) (path string) {
	t.Helper()
	dir := t.TempDir()
	text := "#!/bin/sh\nREAL=/usr/sbin/" + name + "\n" + script + "\n"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return "PATH=" + dir + ":" + os.Getenv("PATH")
}

func TestBinariesMissing(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	for _, command := range []string{"run", "check"} {
		cmd := n.Command(t.Context(), "env", "PATH="+t.TempDir(), binary, command, "--layers", n.layers)
		code, _, stderr := run(t, cmd)
		want := map[string]int{"run": 1, "check": 2}[command]
		if code != want || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "install") {
			t.Errorf("%s: exit %d, want %d: %s", command, code, want, stderr)
		}
	}
}

// iptables fails while the agent runs, in the ways in which programs fail; and works again. Legacy rules are read by nothing
// else, so that their state is unknown; of nft's the kernel has the list.
func TestBinariesFail(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, fault, reason string }{
		{"hangs", "sleep 1000000", "exec"},
		{"prints rubbish", "head -c 10000 /dev/urandom; exit 0", "other"},
		{"prints nothing", "exit 0", "other"},
		{"prints half", "$REAL \"$@\" | head -c 30; exit 0", "other"},
		{"is killed", "kill -9 $$", "exec"},
		{"fails", "echo 'xtables lock? no' >&2; exit 3", "other"},
	} {
		for _, v := range []variant{variants[0], variants[2]} {
			t.Run(c.name+"/"+v.String(), func(t *testing.T) {
				t.Parallel()
				n := newNode(t)
				flag := filepath.Join(t.TempDir(), "faulty")
				path := fakeBin(t, v.iptables(), fmt.Sprintf("if [ -e %s ]; then %s; fi\nexec $REAL \"$@\"", flag, c.fault))
				a := n.startWith([]string{path}, "--backend", string(v.backend), "--resync-period", "300ms")
				eventually(t, "the agent is ready", a.ready)
				if err := os.WriteFile(flag, nil, 0o644); err != nil {
					t.Fatal(err)
				}
				if v.backend == rules.Legacy {
					eventually(t, "the state is unknown", func() bool { return a.state(v, layer.Unknown) })
					eventually(t, "it is not ready", func() bool { return !a.ready() })
				}
				eventually(t, "the error is counted", func() bool {
					return a.metric(fmt.Sprintf(`imds_guard_iptables_errors_total{family="ipv4",operation="list",reason=%q}`, c.reason)) >= 1
				})
				if _, err := a.get("/healthz"); err != nil {
					t.Errorf("not healthy: %v", err)
				}
				n.mustBeBlocked(v)
				if v.backend == rules.NFT {
					n.sh("nft flush chain ip filter FORWARD")
					eventually(t, "the rule is back without iptables", func() bool { return oursFirst.MatchString(n.nftRules(v)) })
					n.sh("nft insert rule ip filter FORWARD accept")
					eventually(t, "the rule is above without iptables", func() bool { return oursFirst.MatchString(n.nftRules(v)) })
				}
				if err := os.Remove(flag); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the agent is ready again", a.ready)
				if v.backend == rules.NFT {
					n.sh("nft flush chain ip filter FORWARD")
					eventually(t, "the rule is back", func() bool { return n.onTop(v) })
				}
				if list := n.forward(v); len(list) != 1 {
					t.Errorf("FORWARD is %q", list)
				}
			})
		}
	}
}

// iptables never lists our rule although it is there: the inserts must end.
func TestLyingListIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		most         int
	}{
		{"prints ours in another form", `$REAL "$@" | sed 's/-j DROP/-j DROP --new-option/'`, 3},
		{"prints an empty chain", `case "$*" in *-S*) echo '-P FORWARD ACCEPT -c 0 0';; *) exec $REAL "$@";; esac`, 3},
		{"prints an empty chain and fails, in turn", `case "$*" in *-S*)
			if [ -e /run/odd ]; then rm /run/odd; exit 1; fi; touch /run/odd; echo '-P FORWARD ACCEPT -c 0 0';; *) exec $REAL "$@";; esac`, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := variant{rules.Legacy, imds.IPv4} // where the kernel is not asked beside iptables
			n := newNode(t)
			path := fakeBin(t, v.iptables(), c.script)
			a := n.startWith([]string{path}, "--backend", "legacy", "--resync-period", "100ms")
			began := time.Now()
			eventually(t, "the inserts have ended", func() bool { return count(n.forward(v), v.ours()) >= c.most })
			a.awaitLooks(v, 30)
			// One more is tried after a second, the next after two, four, …
			copies, most := count(n.forward(v), v.ours()), c.most
			for pause := time.Second; pause < time.Since(began)+time.Second; pause *= 2 {
				most++
			}
			if copies > most {
				t.Errorf("%d copies of the rule after %s, want %d at most", copies, time.Since(began), most)
			}
			if a.ready() {
				t.Error("ready without proof")
			}
		})
	}
}

// A kernel without IPv6 netfilter is not available here, so ip6tables is made to report what it would there.
func TestNoIPv6Netfilter(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := fakeBin(t, "ip6tables-legacy", `case "$*" in --version) exec $REAL "$@";; esac
echo "modprobe: FATAL: Module ip6_tables not found" >&2
echo "ip6tables v1.8.9 (legacy): can't initialize ip6tables table \`+"`"+`filter': Table does not exist (do you need to insmod?)" >&2
exit 3`)
	n.sh("ip6tables-legacy -S >/dev/null") // so that there is a table to be read
	a := n.startWith([]string{path}, "--backend", "legacy", "--resync-period", "200ms")
	v6 := variant{rules.Legacy, imds.IPv6}
	eventually(t, "IPv6 is unknown while the node forwards it", func() bool { return a.state(v6, layer.Unknown) })
	if a.ready() {
		t.Error("ready while IPv6 is open")
	}
	n.sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
	eventually(t, "IPv6 is unsupported", func() bool { return a.state(v6, layer.Unsupported) && a.ready() })
	lines := strings.Count(a.log.String(), "\n")
	a.awaitLooks(v6, 10)
	if now := strings.Count(a.log.String(), "\n"); now != lines {
		t.Errorf("%d log lines about nothing", now-lines)
	}
}

// To nft, `eni+` is the name of one interface, and a rule with a comment is somebody's: neither is ours, whatever iptables
// prints, and cleanup leaves both.
func TestAlmostOurs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, rule string
		served     bool // with that rule alone
	}{
		{"a plus that is no wildcard", `iifname "eni+" ip daddr 169.254.169.254 counter drop`, true},
		{"a comment", `iifname "eni*" ip daddr 169.254.169.254 counter drop comment "mine"`, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := variants[0]
			n := newNode(t)
			n.sh(`iptables-nft -A FORWARD -j ACCEPT; iptables-nft -F FORWARD; nft 'add rule ip filter FORWARD %s'`, c.rule)
			if n.served(v) != c.served {
				t.Fatalf("served: %t; then this test proves nothing", !c.served)
			}
			a := n.startReady("--backend", "nft", "--resync-period", "1s")
			n.mustBeBlocked(v)
			for range 3 {
				n.sh("nft insert rule ip filter FORWARD accept")
				eventually(t, "the ACCEPT is answered", func() bool { return oursFirst.MatchString(n.nftRules(v)) && a.ready() })
				n.mustBeBlocked(v)
			}
			a.awaitLooks(v, 3)
			eventually(t, "the agent is still ready", a.ready)
			a.kill()
			code, _, stderr := n.guard("cleanup")
			if code != 0 || oursFirst.MatchString(n.nftRules(v)) || strings.Count(n.nftRules(v), "169.254.169.254") != 1 {
				t.Errorf("cleanup: exit %d %s; the chain is\n%s", code, stderr, n.nftRules(v))
			}
		})
	}
}

// The storm of duplicates that a wrong reading once caused elsewhere (cloudnativelabs/kube-router#1676): ours gets to the top
// all the same, and cleanup takes all of it.
func TestThousandsOfCopies(t *testing.T) {
	t.Parallel()
	v := variants[0]
	n := newNode(t)
	copies := func(top string) {
		n.sh(`{ echo '*filter'; echo ':FORWARD ACCEPT'; %s for i in $(seq 5000); do echo '%s'; done; echo COMMIT; } | iptables-nft-restore`, top, v.ours())
	}
	a := n.startReady("--backend", "nft")
	copies("echo '-A FORWARD -j ACCEPT';")
	eventually(t, "ours is on top", func() bool {
		return strings.Contains(n.sh("nft list chain ip filter FORWARD | sed -n 4p"), "drop") && a.ready()
	})
	n.mustBeBlocked(v)
	a.kill()
	copies("")
	if code, stdout, stderr := n.guard("cleanup"); code != 0 || !strings.Contains(stdout, "removed 5000 rules (ipv4, iptables-nft)") {
		t.Errorf("cleanup: exit %d: %s%s", code, stdout, stderr)
	}
	if list := n.forward(v); len(list) != 0 {
		t.Errorf("%d rules are left", len(list))
	}
}

// What can't be read is unknown, and unknown is not protected.
package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// nftRules lists FORWARD as nftables has it, for when iptables can't.
func (n *node) nftRules(v variant) string {
	family := "ip"
	if v.family == enforce.IPv6 {
		family = "ip6"
	}
	return n.sh("nft list chain %s filter FORWARD", family)
}

// oursFirst finds our IPv4 rule behind the chain's policy.
var oursFirst = regexp.MustCompile(`policy accept;\s+iifname "eni\*" ip daddr 169.254.169.254 counter packets \d+ bytes \d+ drop`)

// Native nftables rules in the chain: iptables-nft refuses to list some, leaves out others, and misprints yet others.
func TestNativeRules(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, rule string
		state      enforce.State // in which the agent must see it, or end up after a repair
	}{
		{"makes iptables -S fail", "ct state established counter accept", enforce.Unknown},
		{"is left out by iptables -S", "ip daddr != 10.0.0.0-172.0.0.0 accept", enforce.Unknown},
		{"is misprinted as harmless", "ip daddr > 10.0.0.1 accept", enforce.Shadowed},
		{"is misprinted as negated", "ip daddr != 10.0.0.1 ip daddr 169.254.169.254 accept", enforce.Shadowed},
		{"is misprinted as negated, by interface", `iifname != lo iifname "eni*" accept`, enforce.Shadowed},
		{"looks like no verdict", "ip daddr vmap { 169.254.169.254 : accept }", enforce.Shadowed},
		{"looks like our own and drops less", `iifname "eni*" ip daddr 169.254.169.254 ip saddr { 1.2.3.4, 1.2.3.5 } drop`, enforce.Unknown},
		{"looks like a drop and accepts", "ip saddr vmap { 10.0.0.1 : accept } drop", enforce.Shadowed},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := variants[0]
			n := newNode(t)
			a := n.startReady("--backend", "nft", "--resync-period", "1s")
			n.sh(`nft 'insert rule ip filter FORWARD %s'`, c.rule)
			eventually(t, "the drift is counted", func() bool { return a.drift(v, c.state) == 1 })
			if c.state != enforce.Unknown {
				eventually(t, "the agent is ready again", a.ready)
				n.mustBeBlocked(v)
				if kernel := n.nftRules(v); !oursFirst.MatchString(kernel) {
					t.Errorf("ours is not on top:\n%s", kernel)
				}
				return
			}
			if a.ready() || a.metric("imds_guard_protected") != 0 {
				t.Error("the agent says protected of a chain that it can't read")
			}
			if code, _, _ := n.guard("check"); code != 2 {
				t.Errorf("check ends with %d", code)
			}
			// No inserts for want of a reading, over several looks.
			a.awaitResyncs(3)
			if copies := strings.Count(n.nftRules(v), "169.254.169.254 counter"); copies != 1 {
				t.Errorf("%d copies of our rule in\n%s", copies, n.nftRules(v))
			}
			if a.metric(`imds_guard_iptables_errors_total{family="ipv4",operation="list",reason="incompatible"}`) < 1 {
				t.Error("the error is not counted")
			}
			// What the kernel itself says is missing comes back, in spite of iptables.
			handle := n.sh(`nft -a list chain ip filter FORWARD | sed -n 's/.*"eni\*" ip daddr 169.254.169.254 counter .*handle //p'`)
			n.sh("nft delete rule ip filter FORWARD handle %s", strings.TrimSpace(handle))
			eventually(t, "the rule is there again", func() bool { return strings.Count(n.nftRules(v), "169.254.169.254 counter") == 1 })
			n.mustBeBlocked(v)
			// cleanup can't tell either, and says so.
			a.kill()
			if code, _, stderr := n.guard("cleanup"); code != 1 || !strings.Contains(stderr, "cleaning the ipv4 rules of iptables-nft") {
				t.Errorf("cleanup beside the native rule: exit %d, %q", code, stderr)
			}
			if kernel := n.nftRules(v); strings.Count(kernel, " accept\n")+strings.Count(kernel, " drop\n") != 2 {
				t.Errorf("ours and the native rule should be there:\n%s", kernel)
			}
			n.sh("nft flush chain ip filter FORWARD")
			n.startReady("--backend", "nft")
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

// A table whose hooks are switched off, by which no packet goes.
func TestDormantTable(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	a := n.startReady("--backend", "nft")
	n.sh("nft add table ip filter '{ flags dormant; }'")
	eventually(t, "it is seen", func() bool { return a.state(variants[0], enforce.Unknown) })
	if !n.served(variants[0]) {
		t.Error("the pod is blocked; then this test proves nothing")
	}
	if code, stdout, _ := n.guard("check"); code != 2 || !strings.Contains(stdout, "dormant") {
		t.Errorf("check ends with %d and says\n%s", code, stdout)
	}
	n.sh("nft add table ip filter")
	eventually(t, "the agent is ready again", a.ready)
}

// Another process holds the xtables lock for longer than we wait.
func TestLockIsHeld(t *testing.T) {
	t.Parallel()
	v := variant{rules.Legacy, enforce.IPv4}
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
		cmd := n.Command(t.Context(), "env", "PATH="+t.TempDir(), binary, command)
		code, _, stderr := run(t, cmd)
		want := map[string]int{"run": 1, "check": 2}[command]
		if code != want || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "install") {
			t.Errorf("%s: exit %d, want %d: %s", command, code, want, stderr)
		}
	}
}

// iptables fails while the agent runs, in the ways in which programs fail; and works again.
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
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			n := newNode(t)
			flag := filepath.Join(t.TempDir(), "faulty")
			path := fakeBin(t, "iptables-nft", fmt.Sprintf("if [ -e %s ]; then %s; fi\nexec $REAL \"$@\"", flag, c.fault))
			a := n.startWith([]string{path}, "--backend", "nft", "--resync-period", "300ms")
			eventually(t, "the agent is ready", a.ready)
			if err := os.WriteFile(flag, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the state is unknown", func() bool { return a.state(variants[0], enforce.Unknown) })
			eventually(t, "it is not ready", func() bool { return !a.ready() })
			eventually(t, "the error is counted", func() bool {
				return a.metric(fmt.Sprintf(`imds_guard_iptables_errors_total{family="ipv4",operation="list",reason=%q}`, c.reason)) >= 1
			})
			if _, err := a.get("/healthz"); err != nil {
				t.Errorf("not healthy: %v", err)
			}
			n.mustBeBlocked(variants[0])
			if err := os.Remove(flag); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the agent is ready again", a.ready)
			if list := n.forward(variants[0]); len(list) != 1 {
				t.Errorf("FORWARD is %q", list)
			}
		})
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
			v := variant{rules.Legacy, enforce.IPv4} // where the kernel is not asked beside iptables
			n := newNode(t)
			path := fakeBin(t, v.iptables(), c.script)
			a := n.startWith([]string{path}, "--backend", "legacy", "--resync-period", "100ms")
			eventually(t, "the inserts have ended", func() bool { return count(n.forward(v), v.ours()) >= c.most })
			a.awaitResyncs(10)
			if copies := count(n.forward(v), v.ours()); copies != c.most {
				t.Errorf("%d copies of the rule, want %d", copies, c.most)
			}
			if a.ready() {
				t.Error("ready without proof")
			}
		})
	}
}

// A kernel without IPv6 netfilter can't be had here, so ip6tables says what it says there.
func TestNoIPv6Netfilter(t *testing.T) {
	t.Parallel()
	n := newNode(t)
	path := fakeBin(t, "ip6tables-legacy", `case "$*" in --version) exec $REAL "$@";; esac
echo "modprobe: FATAL: Module ip6_tables not found" >&2
echo "ip6tables v1.8.9 (legacy): can't initialize ip6tables table \`+"`"+`filter': Table does not exist (do you need to insmod?)" >&2
exit 3`)
	n.sh("ip6tables-legacy -S >/dev/null") // so that there is a table to be read
	a := n.startWith([]string{path}, "--backend", "legacy", "--resync-period", "200ms")
	v6 := variant{rules.Legacy, enforce.IPv6}
	eventually(t, "IPv6 is unknown while the node forwards it", func() bool { return a.state(v6, enforce.Unknown) })
	if a.ready() {
		t.Error("ready while IPv6 is open")
	}
	n.sh("echo 0 > /proc/sys/net/ipv6/conf/all/forwarding")
	eventually(t, "IPv6 is unsupported", func() bool { return a.state(v6, enforce.Unsupported) && a.ready() })
	lines := strings.Count(a.log.String(), "\n")
	a.awaitResyncs(10)
	if now := strings.Count(a.log.String(), "\n"); now != lines {
		t.Errorf("%d log lines about nothing", now-lines)
	}
}

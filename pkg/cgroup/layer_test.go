package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// spellings are the calls by which a socket can get to the endpoint, by family.
var spellings = map[imds.Family][]string{
	imds.IPv4: {
		"tcp 169.254.169.254:80", "tcp 169.254.169.254:8080", "udp 169.254.169.254:80", "udp-sendto 169.254.169.254:80",
		"fastopen 169.254.169.254:80", "mptcp 169.254.169.254:80",
		"tcp [::ffff:169.254.169.254]:80", "udp [::ffff:169.254.169.254]:80", "udp-sendto [::ffff:169.254.169.254]:80",
		"fastopen [::ffff:169.254.169.254]:80", "mptcp [::ffff:169.254.169.254]:80",
	},
	imds.IPv6: {
		"tcp [fd00:ec2::254]:80", "udp [fd00:ec2::254]:80", "udp-sendto [fd00:ec2::254]:80", "fastopen [fd00:ec2::254]:80",
		"mptcp [fd00:ec2::254]:80",
	},
}

// Every spelling of the endpoint is refused to a pod, and to nobody else; nothing else is refused.
func TestRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, f := range imds.Families {
		w.mustAll(w.pod.Namespace, f, "sent", "without the layer")
		w.must(f, layer.Missing, "the counter is not pinned")
		w.repair(f)
		found := w.must(f, layer.Enforced, "")
		if len(found.Rules) != len(hooksOf(f, false)) || !found.SocketsOnly || found.Place != w.pods {
			t.Errorf("%s: read back: %+v", f, found.Reading)
		}
		w.mustAll(w.pod.Namespace, f, "EPERM", "with it")
		if blocked := w.look(f).Blocked; blocked != uint64(len(spellings[f])) {
			t.Errorf("%s: %d calls counted of %d", f, blocked, len(spellings[f]))
		}
		w.mustAll(w.Host(), f, "sent", "a pod in the node's network namespace")
	}
	others := []string{
		"tcp 169.254.169.253:80", "udp-sendto 169.254.169.123:80", "tcp [fd00:ec2::253]:80", "udp [fd00:ec2::23]:80", "tcp 192.0.2.1:80",
	}
	if got := w.try(w.pod.Namespace, others...); slices.ContainsFunc(got, isNot("sent")) {
		t.Errorf("calls to others: %q", got)
	}
}

// What is lost is noticed and put back; while the links are held open, the loss of a pin opens nothing.
func TestLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, f := range imds.Families {
		w.repair(f)
		w.must(f, layer.Enforced, "")
		hooks := hooksOf(f, false)
		first, second := hooks[0], hooks[1]
		for _, loss := range []struct{ how, detail string }{
			{"rm " + pinOf(f, first, "link"), first.name + ": no link is pinned"},
			{"rm " + pinOf(f, first, "program"), first.name + ": its program is not pinned"},
			{"rm " + counterOf(f), "the counter is not pinned"},
			{"rm -r " + pins(), "the counter is not pinned"},
			{
				fmt.Sprintf("mv %s %s", pinOf(f, second, "program"), pinOf(f, first, "program")),
				first.name + ": its program is a different one; " + second.name + ": its program is not pinned",
			},
			{fmt.Sprintf("mv %s %s", pinOf(f, second, "link"), pinOf(f, first, "link")), first.name + ": its link is not attached there"},
			{fmt.Sprintf("mv %s %s", counterOf(f), pinOf(f, first, "link")), "the counter is not pinned"},
		} {
			before := w.look(f).Blocked
			w.sh("%s", loss.how)
			w.must(f, layer.Missing, loss.detail)
			w.mustAll(w.pod.Namespace, f, "EPERM", "after "+loss.how)
			w.repair(f)
			if now := w.must(f, layer.Enforced, "").Blocked; now < before {
				t.Errorf("%s: after %s the count went from %d to %d", f, loss.how, before, now)
			}
			w.mustAll(w.pod.Namespace, f, "EPERM", "repaired after "+loss.how)
		}
	}
}

// A detached link is noticed and replaced.
func TestDetached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, f := range imds.Families {
		w.repair(f)
		h := hooksOf(f, false)[0]
		err := w.Host().Do(func() error {
			l, err := link.LoadPinnedLink(pinOf(f, h, "link"), nil)
			if err != nil {
				return err
			}
			defer l.Close()
			return l.Detach()
		})
		if err != nil {
			t.Fatal(err)
		}
		w.must(f, layer.Missing, h.name+": its link is not attached there")
		if got := w.try(w.pod.Namespace, spellings[f][0]); got[0] != "sent" {
			t.Errorf("%s: with the link detached: %q", f, got)
		}
		w.repair(f)
		w.must(f, layer.Enforced, "")
		w.mustAll(w.pod.Namespace, f, "EPERM", "after the repair")
	}
}

// The end of the agent leaves everything in force, and the next one finds it so, with what was counted.
func TestOutlivesTheAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, f := range imds.Families {
		w.repair(f)
		w.mustAll(w.pod.Namespace, f, "EPERM", "while the agent runs")
		w.letGo()
		w.mustAll(w.pod.Namespace, f, "EPERM", "after its end")
		if blocked := w.must(f, layer.Enforced, "").Blocked; blocked != uint64(2*len(spellings[f])) {
			t.Errorf("%s: %d counted", f, blocked)
		}
	}
}

// The programs of another version are replaced in their links, without letting a single call through in between.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := imds.IPv4
	w.repair(f)
	ids := func() (list []link.ID) {
		err := w.Host().Do(func() error {
			for _, h := range hooksOf(f, false) {
				l, err := link.LoadPinnedLink(pinOf(f, h, "link"), nil)
				if err != nil {
					return err
				}
				is, err := l.Info()
				if err != nil {
					return err
				}
				list = append(list, is.ID)
				l.Close()
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	links := ids()
	var asking sync.WaitGroup
	done := make(chan struct{})
	defer asking.Wait()
	defer close(done)
	asking.Go(func() {
		for many := slices.Repeat(spellings[f], 20); ; {
			select {
			case <-done:
				return
			default:
				results, err := w.SocketCalls(w.pod.Namespace, many...)
				if err != nil || slices.ContainsFunc(results, func(s string) bool { return s != "EPERM" }) {
					t.Errorf("during the upgrade: %v, %q", err, results)
					return
				}
			}
		}
	})
	for range 20 {
		// Of another version: for another node's namespace, by which it refuses pods here as well.
		err := w.Host().Do(func() error {
			at, err := os.Open(w.pods)
			if err != nil {
				return err
			}
			defer at.Close()
			m, _ := openMaps(f, policy.Allow, false)
			defer m.close()
			for _, h := range hooksOf(f, false) {
				if _, err := putHook(h, at, wanted{f, 12345, 0, policy.Allow, false, true, m}, w.layers[f].alive(h, at)); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		w.letGo() // the old version's agent ends
		w.must(f, layer.Missing, "connect4: its program is a different one")
		w.repair(f)
		w.must(f, layer.Enforced, "")
	}
	if now := ids(); !slices.Equal(now, links) {
		t.Errorf("the links are %v and were %v", now, links)
	}
}

// A pod can't escape with a program of its own, a cgroup further down, or a cgroup namespace of its own.
func TestNoEscape(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.repair(imds.IPv4)
	container := filepath.Join(w.pods, "pod1", "container")
	allow, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer allow.Close()
	own, err := link.AttachCgroup(link.CgroupOptions{Path: container, Attach: ebpf.AttachCGroupInet4Connect, Program: allow})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	w.mustAll(w.pod.Namespace, imds.IPv4, "EPERM", "with a program of the container's own")
	// In a network namespace of its own no way leads there: a refusal comes first all the same.
	other, err := w.AddPod("eni0123456789b")
	if err != nil {
		t.Fatal(err)
	}
	w.mustAll(other.Namespace, imds.IPv4, "EPERM", "in another network namespace")
	if got := w.tryAs(testnode.Caller{Cgroup: "pod1/container", OwnNamespace: true}, spellings[imds.IPv4]...); slices.ContainsFunc(got, isNot("EPERM")) {
		t.Errorf("in a cgroup namespace of its own: %q", got)
	}
}

func isNot(want string) func(string) bool { return func(s string) bool { return s != want } }

// A socket belongs to the cgroup in which it was made, whoever uses it: a pod's stays refused, and one that a process outside
// of the pods made for a pod is not.
func TestPassedOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.repair(imds.IPv4)
	const cgroup, to = "pod1/container", "169.254.169.254:80"

	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "ours"), os.NewFile(uintptr(ends[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	if got := w.tryAs(testnode.Caller{Cgroup: cgroup, Passed: theirs}, "pass "+to); got[0] != "sent" {
		t.Fatalf("passing a socket: %s", got)
	}
	control := make([]byte, 64)
	_, n, _, _, err := unix.Recvmsg(ends[0], make([]byte, 1), control, 0)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil {
		t.Fatal(err)
	}
	passed, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(passed[0])
	address := &unix.SockaddrInet4{Port: 80, Addr: imds.IPv4.Endpoint().Addr().As4()}
	if err := unix.Connect(passed[0], address); err != unix.EPERM {
		t.Errorf("a socket that a pod has passed on is connected with %v", err)
	}

	var outside int
	if err := w.pod.Do(func() (err error) {
		outside, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	from := os.NewFile(uintptr(outside), "outside")
	defer from.Close()
	if got := w.tryAs(testnode.Caller{Cgroup: cgroup, Passed: from}, "tcp "+to, "passed "+to); !slices.Equal(got, []string{"EPERM", "sent"}) {
		t.Errorf("a socket of the pod's own, and one from outside of the pods, are connected with %q", got)
	}
}

// Where the layer is not supported, it says why. A configured directory that doesn't exist is not such a case.
func TestNotToBeHad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.sh("while umount /sys/fs/bpf 2>/dev/null; do :; done") // there may be another below
	w.must(imds.IPv4, layer.Unsupported, "no bpffs is mounted at /sys/fs/bpf")
	w.sh("mount -t bpf bpf /sys/fs/bpf")
	w.repair(imds.IPv4)
	w.must(imds.IPv4, layer.Enforced, "")
	w.sh("umount /sys/fs/bpf")
	w.must(imds.IPv4, layer.Unknown, "no bpffs is mounted at /sys/fs/bpf") // it was there: that is no node that can't have it
	w.mustAll(w.pod.Namespace, imds.IPv4, "EPERM", "while the links are held")
	w.letGo()
	w.layers[imds.IPv4] = New(imds.IPv4, "/sys/fs/cgroup/no/such/cgroup")
	w.must(imds.IPv4, layer.Unknown, "no such file or directory")
	w.layers[imds.IPv4] = New(imds.IPv4, "/tmp")
	w.must(imds.IPv4, layer.Unknown, "/tmp is not in a cgroup v2")
	err := w.layers[imds.IPv4].Repair(policy.Policy{}, layer.Finding{})
	if err == nil || !strings.Contains(err.Error(), "the finding is not its own") {
		t.Errorf("repairing what nobody looked at: %v", err)
	}
}

// The directory is found under the names that the kubelet's drivers use, also below a cgroupRoot. Of several, the one in use is
// taken; if several are in use, none is.
func TestFind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, below := range []string{"kubelet.slice/kubelet-kubepods.slice", "a/b/kubepods", "kubelet/kubepods", "kubepods", "kubepods.slice"} {
		root := filepath.Join(w.pods, fmt.Sprint("root", i))
		want := filepath.Join(root, below)
		if err := os.MkdirAll(want, 0o755); err != nil {
			t.Fatal(err)
		}
		if found, err := findBelow([]string{filepath.Join(root, "nowhere"), root}); err != nil || found != want {
			t.Errorf("with %s: %q, %v", below, found, err)
		}
	}
	root := filepath.Join(w.pods, "root4")
	live := func(below string) {
		t.Helper()
		directory := filepath.Join(root, below)
		if err := os.MkdirAll(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		in, err := os.Open(directory)
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		cmd := w.Host().Command(t.Context(), "sleep", "infinity")
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(in.Fd())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go cmd.Wait()
	}
	live("kubelet/kubepods/pod1")
	if found, err := findBelow([]string{root}); err != nil || found != filepath.Join(root, "kubelet/kubepods") {
		t.Errorf("beside an empty one: %q, %v", found, err)
	}
	live("kubepods.slice/pod2")
	if found, err := findBelow([]string{root}); err == nil || !strings.Contains(err.Error(), "may be the pods' cgroup; choose one with --pods-cgroup") {
		t.Errorf("with two in use: %q, %v", found, err)
	}
	if _, err := findBelow([]string{"/tmp"}); err == nil || !strings.Contains(err.Error(), "no cgroup v2 is mounted") {
		t.Errorf("without cgroup v2: %v", err)
	}
}

// Whatever somebody has put in the place of our pins, it is replaced, and cleaned up.
func TestOddPins(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	f := imds.IPv4
	h, other := hooksOf(f, false)[0], hooksOf(f, false)[1]
	at := func(what string) string { return pinOf(f, h, what) }
	for _, odd := range []string{
		fmt.Sprintf("mv %s %s", pinOf(f, other, "program"), at("link")),
		"rm " + at("link") + "; mkdir -p " + at("link") + "/x",
		"rm " + at("program") + "; mkdir -p " + at("program") + "/x",
		fmt.Sprintf("mv %s %s", pinOf(f, other, "link"), at("program")),
		"rm " + counterOf(f) + "; mkdir -p " + counterOf(f) + "/x",
		fmt.Sprintf("mv %s %s", at("program"), counterOf(f)),
		"rm " + at("link") + "; mkdir -p " + at("link-new") + "/x",
	} {
		w.repair(f)
		w.must(f, layer.Enforced, "")
		w.letGo()
		w.sh("%s", odd)
		w.must(f, layer.Missing, "")
		w.repair(f)
		w.must(f, layer.Enforced, "")
		w.mustAll(w.pod.Namespace, f, "EPERM", "after "+odd)
	}
	w.sh("rm %s; mkdir -p %[1]s/x %s/x", at("link"), at("program-new"))
	if err := w.Host().Do(func() error { _, err := Cleanup(f); return err }); err != nil {
		t.Error(err)
	}
	w.sh("test ! -e %s", pins())
}

// A foreign program further up, which one of ours would replace for all pods, is left in force.
func TestOverriding(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	above, err := os.Open(w.pods)
	if err != nil {
		t.Fatal(err)
	}
	defer above.Close()
	refuse, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSockAddr, AttachType: ebpf.AttachCGroupInet4Connect, License: "Apache-2.0",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer refuse.Close()
	const allowOverride = 1 // BPF_F_ALLOW_OVERRIDE
	attach := link.RawAttachProgramOptions{Target: int(above.Fd()), Program: refuse, Attach: ebpf.AttachCGroupInet4Connect, Flags: allowOverride}
	if err := link.RawAttachProgram(attach); err != nil {
		t.Fatal(err)
	}
	w.layers[imds.IPv4] = New(imds.IPv4, filepath.Join(w.pods, "pod1"))
	err = w.Host().Do(func() error {
		l := w.layers[imds.IPv4]
		return l.Repair(policy.Policy{}, l.Look(policy.Policy{}, nil))
	})
	if err == nil || !strings.Contains(err.Error(), "connect4 to "+w.pods+"/pod1: another program at "+w.pods+" would be switched off") {
		t.Errorf("beside a program that can be overridden: %v", err)
	}
	w.must(imds.IPv4, layer.Missing, "connect4: no link is pinned")
	if got := w.try(w.pod.Namespace, "tcp 192.0.2.1:80"); got[0] != "EPERM" {
		t.Errorf("their program is not in force any more: %q", got)
	}
}

// Cleanup removes everything of ours and nothing of others'. It can be repeated, and works even while an agent holds the links.
func TestCleanup(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	clean := func(f imds.Family) (removed []string) {
		t.Helper()
		if err := w.Host().Do(func() (err error) { removed, err = Cleanup(f); return err }); err != nil {
			t.Fatal(err)
		}
		return removed
	}
	w.sh("mkdir /sys/fs/bpf/others")
	for _, f := range imds.Families {
		w.repair(f)
		w.must(f, layer.Enforced, "")
	}
	for _, f := range imds.Families {
		if got := clean(f); len(got) != len(hooksOf(f, false)) {
			t.Errorf("%s: removed %q", f, got)
		}
		w.mustAll(w.pod.Namespace, f, "sent", "after the cleanup")
		if got := clean(f); len(got) != 0 {
			t.Errorf("%s: removed again: %q", f, got)
		}
	}
	w.sh("test ! -e %s; test -e /sys/fs/bpf/others", pins())
}

//go:build linux

// Nothing is left of a node that was closed, or whose owner was killed. The kernel itself is asked, with handles that can't be
// mistaken for those of another node that later got the same numbers.

package testnode

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownerEnv makes the test binary the owner of a node that it never closes.
const ownerEnv = "TESTNODE_OWNER"

func TestMain(m *testing.M) {
	if os.Getenv(ownerEnv) != "" {
		if err := own(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// owned is what the owner reports about its node.
type owned struct {
	Nets  []string // paths, the node's own first
	Mount string
	Pids  []int
}

// populated makes a node with a pod, and a process in each of its namespaces.
func populated() (*Node, owned, error) {
	n, err := New()
	if err != nil {
		return nil, owned{}, err
	}
	pod, err := n.AddPod("eni00000000001")
	if err != nil {
		return n, owned{}, err
	}
	is := owned{Mount: procPath(n.host.mount)}
	for _, ns := range []*Namespace{n.host, n.outside, pod.Namespace} {
		is.Nets = append(is.Nets, ns.Path())
		cmd := ns.Command(context.Background(), "sleep", "infinity")
		if err := cmd.Start(); err != nil {
			return n, owned{}, err
		}
		go cmd.Wait()
		if err := waitUntilIn(ns, cmd.Process.Pid); err != nil {
			return n, owned{}, err
		}
		is.Pids = append(is.Pids, cmd.Process.Pid)
	}
	return n, is, nil
}

// own reports on a populated node and waits to be killed, or for the end of its standard input.
func own() error {
	_, is, err := populated()
	if err != nil {
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(is); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Parallel()
	n, is, err := populated()
	if n != nil {
		defer n.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	// A grandchild, which no Pdeathsig and no Wait of ours is about.
	out, err := n.Command(t.Context(), "sh", "-c", "sleep infinity >/dev/null 2>&1 & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	var grandchild int
	if _, err := fmt.Sscan(string(out), &grandchild); err != nil {
		t.Fatal(err)
	}
	is.Pids = append(is.Pids, grandchild)

	gone := watch(t, is)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	gone()
}

func TestKilledOwnerLeavesNothing(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	owner := exec.Command(self)
	owner.Env = append(os.Environ(), ownerEnv+"=1")
	owner.Stderr = os.Stderr
	stdin, err := owner.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	defer owner.Wait()
	defer owner.Process.Kill()
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var is owned
	if err := json.Unmarshal(line, &is); err != nil {
		t.Fatal(err)
	}

	gone := watch(t, is)
	if err := owner.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	gone()
}

// watched is something that must go.
type watched struct {
	what string
	gone func() bool
}

// watch gets hold of everything that the node consists of, without keeping it alive. The function that it returns waits
// until all of it is gone.
func watch(t *testing.T, is owned) func() {
	t.Helper()
	all := []watched{watchRun(t, is.Nets[0], is.Mount)}
	for _, pid := range is.Pids {
		all = append(all, watchProcess(t, pid))
	}
	for _, path := range is.Nets {
		all = append(all, watchNet(t, path))
	}
	for _, w := range all {
		if w.gone() {
			t.Fatalf("%s is gone too early", w.what)
		}
	}
	return func() {
		t.Helper()
		for _, w := range all {
			eventually(t, w.what+" is gone", w.gone)
		}
	}
}

// watchProcess watches a process by a pidfd, which is readable once the process has ended.
func watchProcess(t *testing.T, pid int) watched {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("opening process %d: %v", pid, err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return watched{fmt.Sprintf("process %d", pid), func() bool { return readable(fd) }}
}

// watchNet puts one end of a veth into the network namespace. The kernel takes the other end away when it destroys the
// namespace, and not before.
func watchNet(t *testing.T, path string) watched {
	t.Helper()
	ours, err := newNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ours.close)
	target := &Namespace{net: open(t, path)}
	defer target.close()
	if err := ours.addVeth("watch0", target, "watch1"); err != nil {
		t.Fatal(err)
	}
	return watched{"network namespace " + path, func() bool {
		err := ours.withHandle(func(h *netlink.Handle) error {
			_, err := h.LinkByName("watch0")
			return err
		})
		return errors.As(err, new(netlink.LinkNotFoundError))
	}}
}

// watchRun watches the /run that only the node's mount namespace has, by inotify, which tells when it is unmounted.
func watchRun(t *testing.T, netPath, mountPath string) watched {
	t.Helper()
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	target := &Namespace{net: open(t, netPath), mount: open(t, mountPath)}
	defer target.close()
	err = target.Do(func() error {
		_, err := unix.InotifyAddWatch(fd, "/run", unix.IN_DELETE_SELF)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return watched{"mount namespace " + mountPath, func() bool { return readable(fd) }}
}

// waitUntilIn waits until a process that was started by Command has entered the namespace.
func waitUntilIn(ns *Namespace, pid int) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		want, err := os.Readlink(ns.Path())
		if err != nil {
			return err
		}
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)); err == nil && got == want {
			return nil
		}
	}
	return fmt.Errorf("waiting until process %d is in the namespace: it never was", pid)
}

// eventually polls, and gives up only when there is no hope left.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s: it never happened", what)
		}
	}
}

func readable(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

//go:build e2e

// Scenario 4: whatever happens to the agent, the rules stay.

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// A pod asks ten times a second while the agent is killed, OOM-killed, deleted, updated, rolled back and removed. It never
// gets an answer. A pod in the host's network does, all the time: the service was there.
func TestAgentLife(t *testing.T) { forEachVariant(t, agentLife) }

func agentLife(t *testing.T, v variant) {
	node.Install(t, v)
	node.WaitAgent(t)
	asker := node.RunAsker(t, "asker", false)
	control := node.RunAsker(t, "control", true)

	restarts := int32(0)
	restarted := func(reason string) func(*corev1.Pod) error {
		restarts++
		want := restarts
		return func(pod *corev1.Pod) error {
			status := pod.Status.ContainerStatuses[0]
			if status.RestartCount != want {
				return fmt.Errorf("restarted %d times", status.RestartCount)
			}
			if last := status.LastTerminationState.Terminated; last == nil || last.Reason != reason {
				return fmt.Errorf("last termination: %+v", last)
			}
			return nil
		}
	}
	for _, event := range []struct {
		name string
		do   func()
		then func(*corev1.Pod) error
	}{
		{"killed by SIGKILL", func() { kill(t, node.AgentPID(t)) }, restarted("Error")},
		{"killed for want of memory", func() { outOfMemory(t, node.AgentPID(t)) }, restarted("OOMKilled")},
		{"pod deleted", func() {
			node.Kubectl(t, "-n", namespace, "delete", "pod", "-l", "app.kubernetes.io/name=imds-guard")
		}, isVersion("v0.1.0")},
		{"updated to v0.1.1", func() {
			node.Kubectl(t, "-n", namespace, "set", "image", "daemonset/imds-guard", "imds-guard="+image+":v0.1.1")
			node.Kubectl(t, "-n", namespace, "rollout", "status", "daemonset/imds-guard", "--timeout=180s")
		}, isVersion("v0.1.1")},
		{"rolled back to v0.1.0", func() {
			node.Kubectl(t, "-n", namespace, "rollout", "undo", "daemonset/imds-guard")
			node.Kubectl(t, "-n", namespace, "rollout", "status", "daemonset/imds-guard", "--timeout=180s")
		}, isVersion("v0.1.0")},
	} {
		step(t, "the agent: %s", event.name)
		event.do()
		node.waitAgent(t, "the agent to be back", event.then)
		asker.WaitAttempts(t, 20)
		control.WaitAnswers(t, 20)
		asker.Never(t)
	}

	step(t, "the DaemonSet is deleted: the rules stay")
	node.Kubectl(t, "-n", namespace, "delete", "daemonset", "imds-guard", "--cascade=foreground")
	asker.WaitAttempts(t, 50)
	attempts := asker.Never(t)
	if dropped, refused := node.dropped(t), asker.refusals(t); dropped+refused < attempts {
		t.Errorf("the rule has dropped %d packets, and %d sockets were refused: fewer than the %d attempts", dropped, refused, attempts)
	}
	figures.add(t, "attempts of a pod while the agent is killed, updated and deleted; answers",
		fmt.Sprintf("%d; %d (control: %d answers)", attempts, asker.Answers(), control.Answers()))

	step(t, "the rules are removed: the same pod gets answers")
	node.removeRules(t)
	asker.WaitAnswers(t, 10)
}

// isVersion checks what the agent itself says.
func isVersion(version string) func(*corev1.Pod) error {
	return func(*corev1.Pod) error {
		if running, err := node.metric("imds_guard_build_info", "version="+version); err != nil || running != 1 {
			return fmt.Errorf("no build_info of %s: %v", version, err)
		}
		return nil
	}
}

// kill kills a process and waits until it has ended. A pidfd says so: the number may be another process's by then.
func kill(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatalf("killing process %d: %v", pid, err)
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatalf("killing process %d: %v", pid, err)
	}
	wait(t, fmt.Sprintf("process %d to end", pid), func() error {
		ended, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		if err == nil && ended == 0 {
			err = fmt.Errorf("it has not")
		}
		return err
	})
}

// outOfMemory fills the memory of the container in which a process runs, until the kernel kills that process.
func outOfMemory(t *testing.T, pid int) {
	t.Helper()
	// Of two processes the kernel shall take this one. Lowering the other's score would need CAP_SYS_RESOURCE.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0); err != nil {
		t.Fatal(err)
	}
	procs := filepath.Join(cgroupOf(t, pid, "memory"), "cgroup.procs")
	// Once alone it is killed, too.
	_ = exec.Command("bash", "-c", `echo $$ >"$1" && exec tail /dev/zero`, "bash", procs).Run()
}

// cgroupOf returns the directory of a process's cgroup in one hierarchy of version 1.
func cgroupOf(t *testing.T, pid int, controller string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] == controller {
			return filepath.Join("/sys/fs/cgroup", controller, fields[2])
		}
	}
	t.Fatalf("process %d has no cgroup for %s: %s", pid, controller, text)
	return ""
}

// dropped returns how many packets the kernel has counted in the rules for IPv4.
func (n *Node) dropped(t *testing.T) int {
	t.Helper()
	sum := 0
	for line := range strings.Lines(n.Exec(t, "iptables-nft", "-nvxL", "FORWARD")) {
		if fields := strings.Fields(line); len(fields) > 0 && strings.Contains(line, imdsIP) {
			packets, err := strconv.Atoi(fields[0])
			if err != nil {
				t.Fatalf("reading %q: %v", line, err)
			}
			sum += packets
		}
	}
	return sum
}

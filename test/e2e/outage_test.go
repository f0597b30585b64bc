//go:build e2e

// Scenario 5: what the agent needs beside the kernel is gone. The rules stay in force all the while, a deleted one is put
// back, and the node's condition is right again afterwards.

package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// outage is how long the API server is away.
const outage = 2 * time.Minute

// The API server is stopped for minutes. Meanwhile the agent is killed, and starts again without it.
func TestAPIServerGone(t *testing.T) {
	begin(t)
	node.Install(t, standard)
	node.WaitAgent(t)
	node.waitProtected(t, time.Time{})
	asker, control := node.RunAsker(t, "asker", false), node.RunAsker(t, "control", true)
	agent := node.AgentPID(t)

	step(t, "the API server stops")
	node.Component(t, "stop", "kube-apiserver", "KILL") // told to end, it takes a minute
	t.Cleanup(func() { node.apiServerBack(t) })
	stopped := time.Now()
	asker.WaitAttempts(t, 20)
	asker.Never(t)
	node.breakRule(t, asker)

	step(t, "the agent is killed, and starts again without the API server")
	kill(t, agent)
	wait(t, "a new agent", func() error {
		_, err := node.metric("imds_guard_protected")
		return err
	})
	if protected := node.Metric(t, "imds_guard_protected"); protected != 1 {
		t.Errorf("imds_guard_protected is %v while the API server is away", protected)
	}
	node.breakRule(t, asker)
	quiet := asker.Answers()
	wait(t, "the outage to last", func() error {
		if lasted := time.Since(stopped); lasted < outage {
			return fmt.Errorf("it has lasted %s", lasted)
		}
		return nil
	})
	if answers := asker.Answers() - quiet; answers != 0 {
		t.Errorf("%d answers while the API server was away", answers)
	}
	control.WaitAnswers(t, 5)
	node.breakRule(t, asker)
	if failed := node.Metric(t, "imds_guard_kubernetes_requests_total", "result=error"); failed < 1 {
		t.Errorf("the agent counted %v failed requests while the API server was away", failed)
	}

	step(t, "the API server is back, after %.0f s", time.Since(stopped).Seconds())
	node.Component(t, "start", "kube-apiserver")
	back := time.Now()
	node.waitProtected(t, back)
	figures.add(t, "from the API server's return to the condition True and fresh", seconds(time.Since(back)))
	node.WaitAgent(t)
	node.breakRule(t, asker)
}

// apiServerBack starts the API server if the test has failed before it could, and those anew that would go on for a while
// with what they knew before the outage: the next test needs them.
func (n *Node) apiServerBack(t *testing.T) {
	t.Helper()
	ready := func() error {
		_, err := n.Try("kubectl", "get", "--raw", "/readyz")
		return err
	}
	if ready() != nil {
		n.Component(t, "start", "kube-apiserver")
		wait(t, "the API server", ready)
	}
	for _, component := range []string{"kube-controller-manager", "kube-scheduler"} {
		n.Component(t, "stop", component)
		n.Component(t, "start", component)
	}
}

// The agent gets a token that the API server refuses, and then a right one.
func TestWrongToken(t *testing.T) {
	begin(t)
	node.Install(t, standard)
	first := node.WaitAgent(t)
	node.waitProtected(t, time.Time{})
	asker, control := node.RunAsker(t, "asker", false), node.RunAsker(t, "control", true)

	step(t, "a wrong token")
	node.Kubectl(t, "-n", namespace, "create", "secret", "generic", "wrong", "--from-literal=token=not.a.token")
	node.Kubectl(t, "-n", namespace, "patch", "daemonset", "imds-guard", "-p", `{"spec": {"template": {"spec": {
		"automountServiceAccountToken": false,
		"volumes": [{"name": "wrong", "projected": {"sources": [
			{"secret": {"name": "wrong"}}, {"configMap": {"name": "kube-root-ca.crt"}}]}}],
		"containers": [{"name": "imds-guard", "volumeMounts": [
			{"name": "wrong", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true}]}]}}}}`)
	second := node.waitAgent(t, "an agent with a wrong token to be ready", anotherThan(first))
	wait(t, "its requests to be refused", func() error {
		failed, err := node.metric("imds_guard_kubernetes_requests_total", "result=error")
		if err == nil && failed < 3 {
			err = fmt.Errorf("%v were", failed)
		}
		return err
	})
	if condition, err := node.Condition(t); err != nil || condition.Status == corev1.ConditionTrue {
		t.Errorf("nobody can say that the node is protected, but the condition is %+v: %v", condition, err)
	}
	control.WaitAnswers(t, 5)
	asker.Never(t)
	node.breakRule(t, asker)

	step(t, "the right token again")
	node.Kubectl(t, "-n", namespace, "rollout", "undo", "daemonset/imds-guard")
	third := node.waitAgent(t, "an agent with the right token to be ready", anotherThan(second))
	node.waitProtected(t, third.CreationTimestamp.Time)
	node.breakRule(t, asker)
}

// anotherThan returns nil for every pod but this one.
func anotherThan(old *corev1.Pod) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		if pod.UID == old.UID {
			return fmt.Errorf("it is the old pod")
		}
		return nil
	}
}

// anotherContainerThan returns nil when the pod's container is another one than it was.
func anotherContainerThan(old *corev1.Pod) func(*corev1.Pod) error {
	return func(pod *corev1.Pod) error {
		if pod.Status.ContainerStatuses[0].ContainerID == old.Status.ContainerStatuses[0].ContainerID {
			return fmt.Errorf("it is the old container")
		}
		return nil
	}
}

// The directory that the agent writes to takes no file, and the disk that its log goes to is full.
func TestFullDisk(t *testing.T) {
	begin(t)
	step(t, "no space for the agent's files")
	node.Exec(t, "mkdir", "-p", "/run/imds-guard")
	node.Exec(t, "mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "full", "/run/imds-guard")
	t.Cleanup(func() { node.Exec(t, "umount", "-l", "/run/imds-guard") })
	if out, err := node.Try("touch", "/run/imds-guard/file"); err == nil {
		t.Fatalf("/run/imds-guard is not full: %s", out)
	}
	node.Install(t, standard)
	// debug: every drift and repair has its lines.
	node.Kubectl(t, "-n", namespace, "patch", "daemonset", "imds-guard", "--type=json",
		"-p", `[{"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--log-level=debug"}]`)
	agent := node.waitAgent(t, "the agent to be ready without space for its files", func(pod *corev1.Pod) error {
		if args := pod.Spec.Containers[0].Args; args[len(args)-1] != "--log-level=debug" {
			return fmt.Errorf("it is the first one")
		}
		return nil
	})
	node.waitProtected(t, agent.CreationTimestamp.Time)
	asker, control := node.RunAsker(t, "asker", false), node.RunAsker(t, "control", true)
	control.WaitAnswers(t, 5)
	asker.Never(t)

	step(t, "no space for the agent's log")
	logs := fmt.Sprintf("/var/log/pods/%s_%s_%s/imds-guard", namespace, agent.Name, agent.UID)
	node.Exec(t, "mount", "-t", "tmpfs", "-o", "size=64k", "full", logs)
	t.Cleanup(func() { node.Exec(t, "umount", "-l", logs) })
	wait(t, "the kubelet to notice that the log isn't there any more", func() error {
		_, err := node.Try("test", "-e", logs+"/0.log")
		return err
	})
	_, err := node.Try("dd", "if=/dev/zero", "of="+logs+"/fill", "bs=1k")
	if err == nil || !strings.Contains(err.Error(), "No space left") {
		t.Fatalf("the disk of the log is not full: %v", err)
	}

	// More than a pipe holds of a log that nobody can write.
	const times = 200
	step(t, "the rule is deleted %d times", times)
	for range times {
		node.breakRule(t, nil)
	}
	control.WaitAnswers(t, 5)
	asker.silent(t)
	figures.add(t, "deleted rules put back while the disk is full", strconv.Itoa(times))
	if protected := node.Metric(t, "imds_guard_protected"); protected != 1 {
		t.Errorf("imds_guard_protected is %v with a full disk", protected)
	}

	step(t, "space again")
	node.Exec(t, "rm", logs+"/fill")
	node.Exec(t, "mount", "-o", "remount,size=1m,nr_inodes=100", "/run/imds-guard")
	// Each network namespace has a record of its own, named by its inode.
	inode := strings.TrimSpace(node.Exec(t, "stat", "-L", "-c", "%i", "/proc/self/ns/net"))
	wait(t, "the agent's record", func() error {
		_, err := node.Try("test", "-s", "/run/imds-guard/"+inode+"/interface-patterns")
		return err
	})
	node.waitProtected(t, time.Time{})
}

// Somebody else has the agent's port.
func TestMetricsPortTaken(t *testing.T) {
	begin(t)
	listener, err := listenIn(fmt.Sprintf("/proc/%d/ns/net", node.initPID), ":9169")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()

	node.Install(t, standard)
	node.waitProtected(t, time.Time{})
	asker, control := node.RunAsker(t, "asker", false), node.RunAsker(t, "control", true)
	control.WaitAnswers(t, 5)
	asker.WaitAttempts(t, 20)
	asker.Never(t)
	node.breakRule(t, asker)
	node.WaitAgent(t) // Ready and alive by the health address: trouble with the metrics must not end the repairs

	step(t, "the port is free again")
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	wait(t, "the metrics are served", func() error {
		response, err := node.HTTP.Get("http://" + nodeIP + ":9169/metrics")
		if err != nil {
			return err
		}
		return response.Body.Close()
	})
	node.breakRule(t, asker)
}

// waitProtected waits until the node's condition is True, by a heartbeat not before since.
func (n *Node) waitProtected(t *testing.T, since time.Time) {
	t.Helper()
	wait(t, "the condition to be True", func() error {
		c, err := n.Condition(t)
		if err != nil {
			return err
		}
		// The API's times are whole seconds.
		if c.Status != corev1.ConditionTrue || c.LastHeartbeatTime.Time.Before(since.Truncate(time.Second)) {
			return fmt.Errorf("it is %s (%s), as of %s", c.Status, c.Reason, c.LastHeartbeatTime.Format(time.TimeOnly))
		}
		return nil
	})
}

// breakRule deletes the IPv4 rule and waits until it is back, at the top. In between the asker may get through. Afterwards
// it must not.
func (n *Node) breakRule(t *testing.T, asker *Asker) {
	t.Helper()
	rule := []string{"FORWARD", "-i", "eni+", "-d", imdsIP + "/32", "-j", "DROP"}
	// Its success says that the rule was there.
	n.Exec(t, append([]string{"iptables-nft", "-D"}, rule...)...)
	wait(t, "the rule to be back", func() error {
		out, err := n.Try("iptables-nft", "-S", "FORWARD", "1")
		if err == nil && strings.TrimSpace(out) != "-A FORWARD -d "+imdsIP+"/32 -i eni+ -j DROP" {
			err = fmt.Errorf("the first one is %s", out)
		}
		return err
	})
	if asker != nil {
		asker.silent(t)
	}
}

// silent fails the test if the pod, which may have been answered before, is answered now.
func (a *Asker) silent(t *testing.T) {
	t.Helper()
	a.WaitAttempts(t, 10) // so that what it met before is in its log
	before := a.Answers()
	a.WaitAttempts(t, 20)
	if answers := a.Answers() - before; answers != 0 {
		t.Errorf("%s got %d answers while the rules were in force", a.name, answers)
	}
}

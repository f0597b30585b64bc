//go:build linux

// What a node is for: pods reach everything through it, and nodes have nothing to do with one another.

package testnode

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

func addPod(t *testing.T, n *Node, ifname string) *Pod {
	t.Helper()
	pod, err := n.AddPod(ifname)
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

func url(ip, path string) string {
	return "http://" + net.JoinHostPort(ip, "80") + path
}

// mustRun runs a command of the node and returns what it prints.
func mustRun(t *testing.T, n *Node, name string, args ...string) string {
	t.Helper()
	out, err := n.Command(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("running %s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func TestPodsAndNodeReachEverything(t *testing.T) {
	t.Parallel()
	n := Make(t)
	from := map[string]*Namespace{
		"first pod":  addPod(t, n, "eni00000000001").Namespace,
		"second pod": addPod(t, n, "vlan0123456789").Namespace,
		"node":       n.Host(),
	}
	want := map[string]string{
		url(IMDSv4, "/latest/meta-data/iam/security-credentials/"): Role,
		url(IMDSv6, "/latest/meta-data/iam/security-credentials/"): Role,
		url(Elsewhere4, "/"): "ok",
		url(Elsewhere6, "/"): "ok",
	}
	for _, ip := range Neighbours {
		want[url(ip, "/")] = "ok"
	}
	for name, ns := range from {
		for url, body := range want {
			if got, err := ns.Get(t.Context(), url); err != nil || got != body {
				t.Errorf("%s: Get(%s) = %q, %v; want %q", name, url, got, err, body)
			}
		}
	}
	if got := n.IMDS().Requests(); got != 6 {
		t.Errorf("Requests() = %d, want 6", got)
	}
}

func TestPodsReachEachOther(t *testing.T) {
	t.Parallel()
	n := Make(t)
	client, server := addPod(t, n, "eni00000000001"), addPod(t, n, "eni00000000002")
	for _, ip := range []string{server.IPv4.String(), server.IPv6.String()} {
		l, err := server.Listen("tcp", net.JoinHostPort(ip, "80"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		conn, err := client.Dial(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if accepted.RemoteAddr().String() != conn.LocalAddr().String() {
			t.Errorf("the server sees %s, the client is %s", accepted.RemoteAddr(), conn.LocalAddr())
		}
	}
}

func TestIMDSv2(t *testing.T) {
	t.Parallel()
	n := Make(t)
	client := addPod(t, n, "eni00000000001").Client()
	do := func(method, path string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, url(IMDSv6, path), nil)
		if err != nil {
			t.Fatal(err)
		}
		if len(header) == 2 {
			req.Header.Set(header[0], header[1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, _ := do("PUT", "/latest/api/token"); status != http.StatusBadRequest {
		t.Errorf("a token without a time to live: status %d, want 400", status)
	}
	status, token := do("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if status != http.StatusOK {
		t.Fatalf("a token: status %d", status)
	}
	const path = "/latest/meta-data/iam/security-credentials/" + Role
	status, document := do("GET", path, "X-aws-ec2-metadata-token", token)
	if status != http.StatusOK || !strings.Contains(document, `"AccessKeyId" : "`+AccessKeyID+`"`) {
		t.Errorf("credentials: status %d, %s", status, document)
	}
	if status, _ := do("GET", path, "X-aws-ec2-metadata-token", "guessed"); status != http.StatusUnauthorized {
		t.Errorf("credentials for a wrong token: status %d, want 401", status)
	}
}

func TestStoppedIMDSLeavesItsAddresses(t *testing.T) {
	t.Parallel()
	n := Make(t)
	n.IMDS().Stop()
	n.IMDS().Stop()
	for _, ip := range []string{IMDSv4, IMDSv6} {
		if _, err := n.Host().Get(t.Context(), url(ip, "/")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Get from the stopped IMDS at %s: %v, want connection refused", ip, err)
		}
		l, err := n.Outside().Listen("tcp", net.JoinHostPort(ip, "80"))
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}

func TestNodesAreSeparate(t *testing.T) {
	t.Parallel()
	nodes := []*Node{Make(t), Make(t)}
	pods := []*Pod{addPod(t, nodes[0], "eni00000000001"), addPod(t, nodes[1], "eni00000000001")}
	for _, backend := range []string{"nft", "legacy"} {
		mustRun(t, nodes[0], "iptables-"+backend, "-w", "-I", "FORWARD", "-d", IMDSv4, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
		mustRun(t, nodes[0], "ip6tables-"+backend, "-w", "-I", "FORWARD", "-d", IMDSv6, "-p", "tcp", "-j", "REJECT", "--reject-with", "tcp-reset")
		for _, ip := range []string{IMDSv4, IMDSv6} {
			if _, err := pods[0].Get(t.Context(), url(ip, "/latest/meta-data/instance-id")); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%s: the pod of the node with the rule at %s: %v, want connection refused", backend, ip, err)
			}
			if _, err := pods[1].Get(t.Context(), url(ip, "/latest/meta-data/instance-id")); err != nil {
				t.Errorf("%s: the pod of the node without a rule: %v", backend, err)
			}
		}
		mustRun(t, nodes[0], "iptables-"+backend, "-w", "-F", "FORWARD")
		mustRun(t, nodes[0], "ip6tables-"+backend, "-w", "-F", "FORWARD")
	}
	if got := nodes[0].IMDS().Requests(); got != 0 {
		t.Errorf("the blocked node's IMDS got %d requests, want 0", got)
	}
	if got := nodes[1].IMDS().Requests(); got != 4 {
		t.Errorf("the other node's IMDS got %d requests, want 4", got)
	}

	mustRun(t, nodes[0], "touch", "/run/xtables.lock", "/run/only-here")
	if out := mustRun(t, nodes[1], "ls", "/run"); strings.Contains(out, "only-here") {
		t.Errorf("the nodes share /run: %s", out)
	}
	if out := mustRun(t, nodes[1], "ls", "/sys/class/net"); out != "eni00000000001\neth0\nlo\n" {
		t.Errorf("/sys/class/net of a node has %q", out)
	}
}

func TestDeletePod(t *testing.T) {
	t.Parallel()
	n := Make(t)
	doomed, other := addPod(t, n, "eni00000000001"), addPod(t, n, "eni00000000002")
	cmd := doomed.Command(t.Context(), "sleep", "infinity")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := waitUntilIn(doomed.Namespace, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	if err := n.DeletePod(doomed); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the pod's process was not killed")
	}
	if out := mustRun(t, n, "ls", "/sys/class/net"); out != "eni00000000002\neth0\nlo\n" {
		t.Errorf("after deleting a pod the node has the links %q", out)
	}
	if _, err := other.Get(t.Context(), url(IMDSv4, "/latest/meta-data/instance-id")); err != nil {
		t.Error(err)
	}
	if err := n.DeletePod(doomed); err == nil {
		t.Error("deleting a pod twice is no error")
	}
	again := addPod(t, n, "eni00000000001")
	if _, err := again.Get(t.Context(), url(IMDSv6, "/latest/meta-data/instance-id")); err != nil {
		t.Error(err)
	}
}

func TestDo(t *testing.T) {
	t.Parallel()
	n := Make(t)
	pod := addPod(t, n, "eni00000000001")
	mustRun(t, n, "touch", "/run/only-here")

	ours, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for name, ns := range map[string]*Namespace{"node": n.Host(), "pod": pod.Namespace} {
		want, err := os.Readlink(ns.Path())
		if err != nil {
			t.Fatal(err)
		}
		var inside string
		failure := errors.New("fn's own")
		err = ns.Do(func() error {
			inside, _ = os.Readlink("/proc/thread-self/ns/net")
			return failure
		})
		if err != failure {
			t.Errorf("%s: Do returned %v, want fn's error", name, err)
		}
		if inside != want || inside == ours {
			t.Errorf("%s: Do ran in %s, want %s", name, inside, want)
		}
	}
	if err := pod.Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("Do returned no error for a function that never returned")
	}
	err = n.Host().Do(func() error { _, err := os.Stat("/run/only-here"); return err })
	if err != nil {
		t.Errorf("Host().Do does not see the node's files: %v", err)
	}
	if after, err := os.Readlink("/proc/self/ns/net"); err != nil || after != ours {
		t.Errorf("the process was in %s before and is in %s, %v", ours, after, err)
	}
}

// A command gets its Pdeathsig when the thread that started it ends, and the runtime gives that thread to others.
func TestCommandsOutliveWhatElseTheirThreadsDo(t *testing.T) {
	t.Parallel()
	n := Make(t)
	var cmds []*exec.Cmd
	for range 20 {
		cmd := n.Command(t.Context(), "cat")
		stdin, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer stdin.Close()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
		Make(t)
		if err := n.Host().Do(func() error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for _, cmd := range cmds {
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
		if status := cmd.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGTERM {
			t.Errorf("a command ended early: %s", cmd.ProcessState)
		}
	}
}

func TestNamesAreRefused(t *testing.T) {
	t.Parallel()
	n := Make(t)
	if conn, err := n.Host().Dial(t.Context(), "tcp", "localhost:80"); err == nil {
		conn.Close()
		t.Error("Dial took a name, which this process would resolve")
	}
	if l, err := n.Host().Listen("tcp", "localhost:80"); err == nil {
		l.Close()
		t.Error("Listen took a name")
	}
}

func TestClosedNode(t *testing.T) {
	t.Parallel()
	n := Make(t)
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if _, err := n.AddPod("eni00000000001"); err == nil {
		t.Error("a closed node took a pod")
	}
	if err := n.Host().Do(func() error { return nil }); err == nil {
		t.Error("Do worked on a closed node")
	}
	if err := n.Command(context.Background(), "true").Run(); err == nil {
		t.Error("Command worked on a closed node")
	}
}

//go:build e2e

// The node: started, stopped, rebooted, and commands on it.

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// As in node/env.sh.
const (
	nodeIP = "10.77.0.2"
	imdsIP = "169.254.169.254"
)

// Node is a one-node Kubernetes below node/run.sh. It dies with this process, however that ends.
type Node struct {
	Name  string
	State string // directory with its files: log/, pods/, etcd/ …

	Client kubernetes.Interface
	HTTP   *http.Client // from inside the node's network

	supervisor *exec.Cmd
	lifeline   io.Closer // run.sh's standard input
	ended      chan error
	initPID    int

	imdsLogBegin int64 // where the metadata service's log was when the test began
}

func newNode() (*Node, error) {
	cache := os.Getenv("E2E_CACHE")
	if cache == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("finding a place for the node's files: %w", err)
		}
		cache = filepath.Join(base, "imds-guard-e2e")
	}
	name := os.Getenv("E2E_NAME")
	if name == "" {
		name = "e2e"
	}
	n := &Node{Name: name, State: filepath.Join(cache, "node-"+name)}
	// No connection is kept: after a reboot it would lead to a network that is gone.
	n.HTTP = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: n.dial, DisableKeepAlives: true}}
	return n, nil
}

// Start starts the node as a new cluster and waits until pods can run on it.
func (n *Node) Start() error {
	if err := n.boot(); err != nil {
		return err
	}
	return n.waitReady(time.Now())
}

// boot starts the node's processes and waits until all components have been started.
func (n *Node) boot(environment ...string) error {
	cmd := exec.Command("node/run.sh")
	cmd.Env = append(os.Environ(), environment...)
	// A session of its own: Ctrl-C is for us, and we end the node in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = os.Stderr
	lifeline, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("starting the node: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the node: %w", err)
	}
	n.supervisor, n.lifeline, n.ended = cmd, lifeline, make(chan error, 1)
	go func() { n.ended <- cmd.Wait() }()

	deadline := time.After(5 * time.Minute)
	for tick := time.Tick(100 * time.Millisecond); ; {
		select {
		case err := <-n.ended:
			n.supervisor = nil
			return fmt.Errorf("the node ended: %v", err)
		case <-deadline:
			return errors.New("the node's components were not started within 5 minutes")
		case <-tick:
			if up, err := n.isUp(); err != nil {
				return err
			} else if up {
				return n.connect()
			}
		}
	}
}

// isUp tells whether node/init.sh is through.
func (n *Node) isUp() (bool, error) {
	pid, err := os.ReadFile(filepath.Join(n.State, "init.pid"))
	if errors.Is(err, os.ErrNotExist) || len(pid) == 0 {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("reading the node's process id: %w", err)
	}
	if n.initPID, err = strconv.Atoi(strings.TrimSpace(string(pid))); err != nil {
		return false, fmt.Errorf("reading the node's process id: %w", err)
	}
	_, err = os.Stat(n.path("/run/e2e/up"))
	return err == nil, nil
}

// path returns where this machine sees a file of the node's.
func (n *Node) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", n.initPID, name) }

func (n *Node) connect() error {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(n.State, "pki/admin.conf"))
	if err != nil {
		return fmt.Errorf("reading the kubeconfig: %w", err)
	}
	config.Dial = n.dial
	config.QPS = -1
	config.Timeout = 30 * time.Second
	if n.Client, err = kubernetes.NewForConfig(config); err != nil {
		return fmt.Errorf("making a client: %w", err)
	}
	return nil
}

// waitReady waits for a node status later than since: a Node object that was kept says Ready from the start.
func (n *Node) waitReady(since time.Time) error {
	return poll(3*time.Minute, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		object, err := n.Client.CoreV1().Nodes().Get(ctx, n.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if err := readySince(object, since); err != nil {
			return err
		}
		_, err = n.Client.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
}

// Stop ends every process of the node.
func (n *Node) Stop() {
	if n.supervisor == nil {
		return
	}
	_ = n.lifeline.Close()
	<-n.ended
	n.supervisor = nil
}

// components are all that make up the node, in the order in which they start.
var components = []string{
	"imds", "etcd", "containerd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
}

// Reboot stops everything at once, and with it goes what a reboot takes: processes, network, rules, /run. The cluster's data
// and the node's disk stay. The kubelet isn't started yet, nor are the other components that are named.
func (n *Node) Reboot(t *testing.T, hold ...string) {
	t.Helper()
	step(t, "the node is rebooted")
	n.Stop()
	if err := n.boot("E2E_KEEP=1", "E2E_HOLD=kubelet "+strings.Join(hold, " ")); err != nil {
		t.Fatal(err)
	}
}

// Replace stops the node for ever and begins a new one in the same cluster: without rules, and without the pods of the old
// one. It will register with the start-up taint as soon as StartKubelet is called.
func (n *Node) Replace(t *testing.T) {
	t.Helper()
	// kube-proxy ends when its Node is deleted.
	n.Reboot(t, "kube-proxy")
	// As the cloud's controllers do for an instance that is gone.
	n.Kubectl(t, "delete", "node", n.Name)
	n.Kubectl(t, "delete", "pods", "--all", "--all-namespaces", "--force", "--grace-period=0")
	file := filepath.Join(n.State, "kubelet.yaml")
	config, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	config = append(config, "registerWithTaints: [{key: "+taint+", effect: NoSchedule}]\n"...)
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
}

// StartKubelet starts it and kube-proxy, after Reboot or Replace, and waits until the node is ready.
func (n *Node) StartKubelet(t *testing.T) {
	t.Helper()
	since := time.Now()
	n.Component(t, "start", "kubelet")
	n.Component(t, "start", "kube-proxy")
	if err := n.waitReady(since); err != nil {
		t.Fatalf("waiting for the node after its reboot: %v", err)
	}
}

// Component starts or stops one component by its name, see components. A signal other than TERM may follow.
func (n *Node) Component(t *testing.T, verb, name string, signal ...string) {
	t.Helper()
	directory, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	n.Exec(t, append([]string{filepath.Join(directory, "node/component.sh"), verb, name}, signal...)...)
}

// command prepares a command in the node's namespaces.
func (n *Node) command(arguments ...string) *exec.Cmd {
	return exec.Command("node/enter.sh", arguments...)
}

// Try runs a command on the node and returns what it printed, on both streams.
func (n *Node) Try(arguments ...string) (string, error) {
	out, err := n.command(arguments...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w: %s", strings.Join(arguments, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// stdout runs a command and returns its standard output alone. What it says on the other stream is part of its error.
func stdout(cmd *exec.Cmd) (string, error) {
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// Exec runs a command on the node and returns what it printed. Its failure is the test's.
func (n *Node) Exec(t *testing.T, arguments ...string) string {
	t.Helper()
	out, err := n.Try(arguments...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Kubectl runs kubectl with an administrator's rights.
func (n *Node) Kubectl(t *testing.T, arguments ...string) string {
	t.Helper()
	return n.Exec(t, append([]string{"kubectl"}, arguments...)...)
}

// Apply applies a manifest's text.
func (n *Node) Apply(t *testing.T, manifest string) {
	t.Helper()
	cmd := n.command("kubectl", "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("applying: %v: %s", err, out)
	}
}

// dryRun says what the API server would say if a manifest's objects were created.
func (n *Node) dryRun(manifest string) error {
	cmd := n.command("kubectl", "create", "--dry-run=server", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// dial connects from the node's network namespace.
func (n *Node) dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread that was in another namespace ends with this goroutine.
		runtime.LockOSThread()
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", n.initPID))
		if err != nil {
			done <- result{nil, fmt.Errorf("opening the node's network namespace: %w", err)}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("entering the node's network namespace: %w", err)}
			return
		}
		conn, err := (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).DialContext(ctx, network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

// tail returns the last lines of one of the node's logs.
func (n *Node) tail(name string, lines int) []string {
	file, err := os.Open(filepath.Join(n.State, "log", name+".log"))
	if err != nil {
		return []string{err.Error()}
	}
	defer file.Close()
	var last []string
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		if last = append(last, scanner.Text()); len(last) > lines {
			last = last[1:]
		}
	}
	return last
}

//go:build linux

// The pods' cgroups, and processes in them.

package testnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// callsEnv makes one of our programs act as a pod's process that makes the socket calls given, as JSON.
const callsEnv = "TESTNODE_CALLS"

// cgroupRoots are where cgroup v2 may be mounted: on its own, or beside version 1.
var cgroupRoots = []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"}

var cgroups atomic.Int64 // for their names

// containerCgroup is a container's cgroup, below the pods'.
const containerCgroup = "pod1/container"

// PodsCgroup makes the cgroup v2 directory below which the node's pods are, containing one pod with one container. They are
// removed with the node.
func (n *Node) PodsCgroup() (string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cgroup != "" {
		return n.cgroup, nil
	}
	root := cgroupRoot()
	if root == "" {
		return "", errors.New("making the pods' cgroup: no cgroup v2 is mounted")
	}
	n.cgroup = filepath.Join(root, fmt.Sprintf("imds-guard-test-%d-%d", os.Getpid(), cgroups.Add(1)))
	if err := os.MkdirAll(filepath.Join(n.cgroup, containerCgroup), 0o755); err != nil {
		return "", fmt.Errorf("making the pods' cgroup: %w", err)
	}
	return n.cgroup, nil
}

// HasCgroup2 reports whether nodes can have a pods' cgroup on this machine.
func HasCgroup2() bool { return cgroupRoot() != "" }

func cgroupRoot() string {
	for _, root := range cgroupRoots {
		var s unix.Statfs_t
		if err := unix.Statfs(root, &s); err == nil && s.Type == unix.CGROUP2_SUPER_MAGIC {
			return root
		}
	}
	return ""
}

// removeCgroups removes the pods' cgroup and everything below it. Its processes have already ended.
func (n *Node) removeCgroups() error {
	if n.cgroup == "" {
		return nil
	}
	var directories []string
	err := filepath.WalkDir(n.cgroup, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			directories = append(directories, path)
		}
		return err
	})
	errs := []error{err}
	for i := len(directories) - 1; i >= 0; i-- {
		err := os.Remove(directories[i])
		// A process leaves its namespaces before its cgroup (kernel/exit.c, do_exit).
		for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			err = os.Remove(directories[i])
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the pods' cgroup: %w", err)
	}
	return nil
}

// InContainer makes a command that has not started yet a process of a pod's container, as far as its cgroup goes. Keep what it
// returns open until the command has started.
func (n *Node) InContainer(cmd *exec.Cmd) (io.Closer, error) {
	return n.InCgroup(cmd, containerCgroup)
}

// InCgroup is InContainer for a container with the given cgroup below the pods', which is made if it doesn't exist.
func (n *Node) InCgroup(cmd *exec.Cmd, cgroup string) (io.Closer, error) {
	pods, err := n.PodsCgroup()
	if err != nil {
		return nil, err
	}
	cgroup = filepath.Join(pods, cgroup)
	if err := os.MkdirAll(cgroup, 0o755); err != nil {
		return nil, fmt.Errorf("making a container's cgroup: %w", err)
	}
	container, err := os.Open(cgroup)
	if err != nil {
		return nil, fmt.Errorf("opening a container's cgroup: %w", err)
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(container.Fd())
	return container, nil
}

// SocketCalls makes socket calls as a process in a pod's container, in a network namespace. Each call is "HOW ADDRESS:PORT",
// where HOW is tcp, udp, udp-sendto, fastopen or mptcp. It returns the outcome of each: "sent", or the error's name, such as
// EPERM. With timed-connect and timed-send it makes TimedCalls UDP calls and returns how long one takes, in nanoseconds:
// "123ns". "get URL" and "get CLIENT@URL" make an HTTP request and return the status, or EPERM; get-v2 does the same with a
// token. The calling program has to begin with [RunSocketCalls].
func (n *Node) SocketCalls(in *Namespace, calls ...string) (results []string, err error) {
	return n.SocketCallsBy(containerCgroup, in, calls...)
}

// SocketCallsBy is SocketCalls by a process in the given cgroup below the pods'.
func (n *Node) SocketCallsBy(cgroup string, in *Namespace, calls ...string) (results []string, err error) {
	return n.SocketCallsAs(Caller{Cgroup: cgroup}, in, calls...)
}

// Caller is a process that makes socket calls.
type Caller struct {
	// Cgroup is the process's cgroup, below the pods'.
	Cgroup string
	// OwnNamespace says that the process has a cgroup namespace of its own.
	OwnNamespace bool
	// Passed is a socket handed to the process: a call "passed ADDRESS:PORT" connects it. Or it is a Unix socket to hand
	// sockets over with: a call "pass ADDRESS:PORT" makes a socket that could be connected there, and sends it.
	Passed *os.File
}

const passedFD = 3

// SocketCallsAs is SocketCalls by another process.
func (n *Node) SocketCallsAs(by Caller, in *Namespace, calls ...string) (results []string, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("making socket calls: %w", err)
	}
	list, err := json.Marshal(calls)
	if err != nil {
		return nil, fmt.Errorf("making socket calls: %w", err)
	}
	cmd := in.Command(context.Background(), self)
	// With the race detector, a process sleeps for a second before it exits.
	cmd.Env = append(os.Environ(), callsEnv+"="+string(list), "GORACE=atexit_sleep_ms=0")
	container, err := n.InCgroup(cmd, by.Cgroup)
	if err != nil {
		return nil, fmt.Errorf("making socket calls: %w", err)
	}
	defer container.Close()
	if by.OwnNamespace {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWCGROUP
	}
	if by.Passed != nil {
		cmd.ExtraFiles = []*os.File{by.Passed}
	}
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("making socket calls: %w", err)
	}
	if results = strings.Fields(string(out)); len(results) != len(calls) {
		return nil, fmt.Errorf("making socket calls: of %q came %q", calls, out)
	}
	return results, nil
}

// TimedCalls is how many calls are made in order to time one.
const TimedCalls = 100_000

// RunSocketCalls makes the calls if SocketCalls started this process, and reports whether it did.
func RunSocketCalls() bool {
	text := os.Getenv(callsEnv)
	if text == "" {
		return false
	}
	var calls []string
	if err := json.Unmarshal([]byte(text), &calls); err != nil {
		panic(err)
	}
	for _, c := range calls {
		fmt.Println(socketCall(c))
	}
	return true
}

func socketCall(call string) string {
	how, to, _ := strings.Cut(call, " ")
	if how == "get" || how == "get-v2" {
		return get(to, how == "get-v2")
	}
	address := netip.MustParseAddrPort(to)
	family := unix.AF_INET
	var sockaddr unix.Sockaddr
	if port := int(address.Port()); address.Addr().Is4() {
		sockaddr = &unix.SockaddrInet4{Port: port, Addr: address.Addr().As4()}
	} else {
		family, sockaddr = unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: address.Addr().As16()}
	}
	kind, protocol := unix.SOCK_STREAM, 0
	switch how {
	case "mptcp":
		protocol = unix.IPPROTO_MPTCP
	case "udp", "udp-sendto", "timed-connect", "timed-send":
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return "socket:" + unix.ErrnoName(err.(unix.Errno))
	}
	defer unix.Close(fd)
	switch how {
	case "pass":
		err = unix.Sendmsg(passedFD, []byte("x"), unix.UnixRights(fd), nil, 0)
	case "passed":
		err = unix.Connect(passedFD, sockaddr)
	case "timed-connect":
		return timed(func() { _ = unix.Connect(fd, sockaddr) })
	case "timed-send":
		return timed(func() { _ = unix.Sendto(fd, nil, 0, sockaddr) })
	case "udp-sendto":
		err = unix.Sendto(fd, []byte("x"), 0, sockaddr)
	case "fastopen":
		err = unix.Sendto(fd, []byte("x"), unix.MSG_FASTOPEN, sockaddr)
	default:
		if err = unix.Connect(fd, sockaddr); err == nil && how == "udp" {
			_, err = unix.Write(fd, []byte("x"))
		}
	}
	if err == nil || errors.Is(err, unix.EINPROGRESS) {
		return "sent"
	}
	return unix.ErrnoName(err.(unix.Errno))
}

// get makes an HTTP request with the client name before the @, if there is one; for IMDSv2 it gets a token first.
func get(url string, v2 bool) string {
	agent, rest, named := strings.Cut(url, "@")
	if !named {
		agent, rest = "", url
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true}}
	do := func(method, url, header, value string) (status, body string) {
		r, err := http.NewRequest(method, url, nil)
		if err != nil {
			panic(err)
		}
		r.Header.Set("User-Agent", agent)
		if header != "" {
			r.Header.Set(header, value)
		}
		answer, err := client.Do(r)
		switch {
		case errors.Is(err, unix.EPERM):
			return "EPERM", ""
		case err != nil:
			return "request:" + strings.ReplaceAll(err.Error(), " ", "-"), ""
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		return strconv.Itoa(answer.StatusCode), string(text)
	}
	if !v2 {
		status, _ := do(http.MethodGet, rest, "", "")
		return status
	}
	host, _, _ := strings.Cut(strings.TrimPrefix(rest, "http://"), "/")
	status, token := do(http.MethodPut, "http://"+host+"/latest/api/token", ttlHeader, strconv.Itoa(maxTTL))
	if status != "200" {
		return status
	}
	status, _ = do(http.MethodGet, rest, tokenHeader, token)
	return status
}

func timed(call func()) string {
	began := time.Now()
	for range TimedCalls {
		call()
	}
	return fmt.Sprintf("%dns", time.Since(began).Nanoseconds()/TimedCalls)
}

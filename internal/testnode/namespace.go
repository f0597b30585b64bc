//go:build linux

// Namespaces held by file descriptors, and how to run code inside them.

package testnode

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace; the node's own has a mount namespace as well. It lives until its Node or Pod is closed, and
// as long as a process or an open socket is in it. Safe for concurrent use.
type Namespace struct {
	net   *os.File
	mount *os.File // nil: everybody's
}

// newNamespace makes a network namespace with its loopback up.
func newNamespace() (*Namespace, error) {
	ns := &Namespace{}
	err := onThread(func(t *thread) (err error) {
		ns.net, err = t.create(unix.CLONE_NEWNET, "net", func() error { return nil })
		return err
	})
	if err == nil {
		err = ns.prepare()
	}
	if err != nil {
		ns.close()
		return nil, err
	}
	return ns, nil
}

// prepare makes IPv6 addresses usable at once, and sets the loopback up.
func (ns *Namespace) prepare() error {
	err := ns.setSysctls(
		"net/ipv6/conf/all/disable_ipv6=0", "net/ipv6/conf/default/disable_ipv6=0",
		"net/ipv6/conf/all/accept_dad=0", "net/ipv6/conf/default/accept_dad=0",
		"net/ipv6/conf/all/accept_ra=0", "net/ipv6/conf/default/accept_ra=0",
		"net/ipv4/conf/all/rp_filter=0", "net/ipv4/conf/default/rp_filter=0",
	)
	if err != nil {
		return err
	}
	return ns.withHandle(func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("finding lo: %w", err)
		}
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("setting lo up: %w", err)
		}
		return nil
	})
}

// Do runs fn on an OS thread in the namespace and returns its error; for Host, the thread is in the node's mount namespace too,
// in /. Only fn's own goroutine and the commands it starts are inside: goroutines it starts are not. A socket stays in the
// namespace in which it was made. fn must not call testing's FailNow and the like.
func (ns *Namespace) Do(fn func() error) error {
	if ns.mount == nil {
		return ns.doNet(fn)
	}
	return onPrivateThread(func(t *thread) error {
		return t.within(ns.mount, "mnt", func() error {
			return t.within(ns.net, "net", fn)
		})
	})
}

// doNet is Do without the mount namespace.
func (ns *Namespace) doNet(fn func() error) error {
	return onThread(func(t *thread) error { return t.within(ns.net, "net", fn) })
}

// Command is exec.CommandContext inside the namespace and, for Host, inside the node's mount namespace, where it starts in /.
// It is killed when this process dies. (It would also be killed when the thread that started it ends, which in Go happens only
// when a goroutine returns without unlocking its thread. Don't do that in a process that uses this package.)
func (ns *Namespace) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	enter := []string{"--net=" + ns.Path()}
	if ns.mount != nil {
		enter = append(enter, "--mount="+procPath(ns.mount))
		if abs, err := filepath.Abs(name); err == nil && strings.Contains(name, "/") {
			name = abs
		}
	}
	cmd := exec.CommandContext(ctx, "nsenter", append(append(enter, "--", name), args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 5 * time.Second // for pipes held open by processes that the command left behind
	return cmd
}

// Path returns a path to the network namespace for nsenter --net= and the like, valid while this process lives.
func (ns *Namespace) Path() string {
	return procPath(ns.net)
}

func procPath(f *os.File) string {
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(f.Fd()))
}

// close releases the namespace. The kernel removes it, with the links in it, once nothing else uses it.
func (ns *Namespace) close() {
	if ns.net != nil {
		ns.net.Close()
	}
	if ns.mount != nil {
		ns.mount.Close()
	}
}

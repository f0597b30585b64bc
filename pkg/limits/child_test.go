// Each test has a process of its own: limits apply to a process, and one possible outcome of a test is that the process aborts.

package limits

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

const childVariable = "LIMITS_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		words := strings.Fields(lines.Text())
		answer := "ok"
		if err := orders[words[0]](words[1:]...); err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", "; ")
		}
		fmt.Println(answer)
	}
}

// orders is what a child does when it is told to.
var orders = map[string]func(args ...string) error{
	"prepare": func(...string) error { return Prepare() },
	"work":    func(...string) error { return work() },
	"hide":    func(args ...string) error { return hide(args[0], args[1]) },
	"needs":   func(...string) error { return fmt.Errorf("%d", threads(runtime.GOMAXPROCS(0))+commands) },
	"procs":   func(...string) error { return fmt.Errorf("%d", runtime.GOMAXPROCS(0)) },
	"limit":   func(...string) error { return shownLimit() },
}

// child is a process that waits for orders.
type child struct {
	t      *testing.T
	cmd    *exec.Cmd
	orders *os.File
	lines  *bufio.Scanner
	stderr bytes.Buffer
}

// startChild starts this program anew, by way of the command given, if any, such as `prlimit …`.
func startChild(t *testing.T, env []string, command ...string) *child {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	command = append(command, self)
	c := &child{t: t, cmd: exec.Command(command[0], command[1:]...)}
	c.cmd.Env = append(append(os.Environ(), childVariable+"=1"), env...)
	c.cmd.Stderr = &c.stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	orders, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	answers, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.lines = bufio.NewScanner(answers)
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		orders.Close()
		_ = c.cmd.Wait()
	})
	c.orders = orders.(*os.File)
	return c
}

// do gives an order and returns the answer; "" if the child has ended over it.
func (c *child) do(format string, args ...any) string {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.orders, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
	if c.lines.Scan() {
		return c.lines.Text()
	}
	if err := c.lines.Err(); err != nil {
		c.t.Fatal(err)
	}
	return ""
}

// mustDo fails the test unless the order is carried out.
func (c *child) mustDo(format string, args ...any) {
	c.t.Helper()
	if answer := c.do(format, args...); answer != "ok" {
		c.t.Fatalf("%s: %q, and on standard error: %s", fmt.Sprintf(format, args...), answer, c.ended())
	}
}

// ended waits for the child's end and returns what it wrote to standard error.
func (c *child) ended() string {
	c.orders.Close()
	_ = c.cmd.Wait()
	return c.stderr.String()
}

// work keeps as many threads busy as the agent can, while the runtime does everything that it may have to: garbage collections,
// timers, connections, goroutines that become ready all at once, and commands, which fail where no process can be created.
func work() error {
	signal.Notify(make(chan os.Signal, 1), unix.SIGUSR1)
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	var entered, left sync.WaitGroup
	for i := range blockedThreads {
		entered.Add(1)
		left.Go(func() {
			if i%2 == 0 {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
			}
			entered.Done()
			_, _ = unix.Read(pipe[0], make([]byte, 1))
		})
	}
	entered.Wait() // the last one has got a thread while the others sit in the kernel with theirs
	for range 50 {
		if err := rush(); err != nil {
			return err
		}
	}
	if _, err := unix.Write(pipe[1], make([]byte, blockedThreads)); err != nil {
		return err
	}
	left.Wait()
	return nil
}

// rush is a moment with much to do.
func rush() error {
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			for range 10 {
				_ = make([]byte, 1<<14)
				runtime.Gosched()
			}
		})
	}
	all.Go(runtime.GC)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer listener.Close()
	all.Go(func() {
		if connection, err := listener.Accept(); err == nil {
			connection.Close()
		}
	})
	connection, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		return err
	}
	defer connection.Close()
	if err := exec.Command("true").Run(); err != nil && !errors.Is(err, unix.EAGAIN) {
		return err
	}
	all.Wait()
	return nil
}

// hide makes the mount namespace look like a container's, where the process's own cgroup is at the top of the hierarchy.
func hide(cgroup, top string) error {
	aside, err := os.MkdirTemp("", "limits")
	if err != nil {
		return err
	}
	defer os.RemoveAll(aside)
	if err := unix.Mount(cgroup, aside, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("binding %s: %w", cgroup, err)
	}
	if err := unix.Unmount(top, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmounting %s: %w", top, err)
	}
	if err := unix.Mount(aside, top, "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("moving %s to %s: %w", aside, top, err)
	}
	_, err = os.Stat(filepath.Join(top, "cgroup.procs"))
	return err
}

// shownLimit is the limit of open files, the process's and that of its commands.
func shownLimit() error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return err
	}
	out, err := exec.Command("sh", "-c", "ulimit -Sn").Output()
	if err != nil {
		return err
	}
	return fmt.Errorf("%d of %d, commands %s", l.Cur, l.Max, strings.TrimSpace(string(out)))
}

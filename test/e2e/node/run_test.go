//go:build e2e

// Package node has no Go code but this test: how run.sh begins and ends a node, with stand-ins for Kubernetes and the images.
package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is far more than anything here needs.
const patience = time.Minute

// standIns replace what makes a node of the namespaces that run.sh starts. images.sh runs until it may go on.
var standIns = map[string]string{
	"config.sh": `mkdir -p "$state/log"`,
	"images.sh": `echo $$ >"$state/making"
until [[ -e $state/images-may-be-made ]]; do sleep 0.05; done
for release in "${releases[@]}"; do echo an image >"$state/images/$release.tar"; done`,
	// Process 1, and one that has left its session, as the components have.
	"init.sh": `for release in "${releases[@]}"; do [[ -s $state/images/$release.tar ]]; done
setsid sleep infinity &
touch "$state/up"
while :; do sleep 3600 & wait $! || true; done`,
}

// supervisor is a run.sh with a name and files of its own.
type supervisor struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  io.Closer
	stderr string // a file
	ended  chan error
	state  string
	cgroup string
}

func start(t *testing.T) *supervisor {
	t.Helper()
	if _, err := os.Stat("/sys/fs/cgroup/memory/tasks"); err != nil {
		t.Fatal("the node needs cgroup v1")
	}
	scripts := filepath.Join(t.TempDir(), "e2e/node")
	if err := os.MkdirAll(scripts, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(scripts, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"run.sh", "env.sh"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		write(name, string(text))
	}
	for name, text := range standIns {
		write(name, "#!/usr/bin/env bash\nset -euo pipefail\nsource \"$(dirname \"$0\")/env.sh\"\nmkdir -p \"$state/images\"\n"+text+"\n")
	}

	cache, name := t.TempDir(), fmt.Sprintf("run-test-%d", os.Getpid())
	s := &supervisor{t: t, state: filepath.Join(cache, "node-"+name), cgroup: "imds-guard-e2e-" + name}
	s.stderr = filepath.Join(cache, "stderr")
	stderr, err := os.Create(s.stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	s.cmd = exec.Command(filepath.Join(scripts, "run.sh"))
	s.cmd.Env = append(os.Environ(), "E2E_CACHE="+cache, "E2E_NAME="+name)
	s.cmd.Stderr = stderr
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.stdin, err = s.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.cmd.Wait() }()
	t.Cleanup(func() {
		// What a run.sh that doesn't do its work would leave.
		_ = s.cmd.Process.Kill()
		_ = s.stdin.Close()
		for _, pid := range s.left() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.eventually("nothing is left of the test", func() bool { return len(s.left()) == 0 })
		directories, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.cgroup)
		for _, directory := range directories {
			_ = os.Remove(directory)
		}
	})
	return s
}

// eventually waits until f is true.
func (s *supervisor) eventually(what string, f func() bool) {
	s.t.Helper()
	for start := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > patience {
			said, _ := os.ReadFile(s.stderr)
			log, _ := os.ReadFile(filepath.Join(s.state, "log/init.log"))
			s.t.Fatalf("waited in vain until %s; run.sh said: %s; init.sh said: %s", what, said, log)
		}
	}
}

func (s *supervisor) exists(name string) bool {
	_, err := os.Stat(filepath.Join(s.state, name))
	return err == nil
}

// makeImages lets the images be made.
func (s *supervisor) makeImages() {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.state, "images-may-be-made"), nil, 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// left returns the processes that are the node's by their cgroup, or run.sh's by their environment.
func (s *supervisor) left() (pids []int) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		var pid int
		if _, err := fmt.Sscanf(filepath.Base(process), "%d", &pid); err != nil || pid == os.Getpid() {
			continue
		}
		cgroup, _ := os.ReadFile(process + "/cgroup")
		environment, _ := os.ReadFile(process + "/environ")
		if strings.Contains(string(cgroup), "/"+s.cgroup+"\n") ||
			strings.Contains(string(environment), "E2E_CACHE="+filepath.Dir(s.state)+"\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// nothingLeft fails the test unless run.sh has ended with all that it has started, and the lock can be taken at once.
func (s *supervisor) nothingLeft() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(patience):
		s.t.Fatal("run.sh has not ended")
	}
	lock, err := os.Open(filepath.Join(s.state, "lock"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		s.t.Errorf("the lock is still held: %v", err)
	}
	// A signal needs a moment to take effect.
	s.eventually("no process is left", func() bool { return len(s.left()) == 0 })
	if directories, _ := filepath.Glob("/sys/fs/cgroup/*/" + s.cgroup); len(directories) > 0 {
		s.t.Errorf("cgroups are left: %s", directories)
	}
	if s.exists("init.pid") {
		s.t.Error("init.pid still names a process")
	}
}

// run.sh is told to stop by a signal, or its standard input ends. Either way it takes the node with it, and the next one can
// start at once.
func TestEnd(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(*supervisor) error
	}{
		{"SIGTERM", func(s *supervisor) error { return s.cmd.Process.Signal(syscall.SIGTERM) }},
		{"standard input ends", func(s *supervisor) error { return s.stdin.Close() }},
	} {
		t.Run(end.name, func(t *testing.T) {
			s := start(t)
			s.eventually("the images are being made", func() bool { return s.exists("making") })
			if said, _ := os.ReadFile(s.stderr); !strings.Contains(string(said), "has no images yet") {
				t.Errorf("run.sh doesn't say what it does, but %q", said)
			}
			s.makeImages()
			s.eventually("the node is up", func() bool { return s.exists("up") && s.exists("init.pid") })
			if err := end.do(s); err != nil {
				t.Fatal(err)
			}
			s.nothingLeft()
		})
		t.Run(end.name+" while the images are being made", func(t *testing.T) {
			s := start(t)
			s.eventually("the images are being made", func() bool { return s.exists("making") })
			if err := end.do(s); err != nil {
				t.Fatal(err)
			}
			s.nothingLeft()
			if s.exists("up") {
				t.Error("the node was started all the same")
			}
		})
	}
}

// Killed itself, run.sh takes the node with it too, but can't tidy up: the next one does, and makes no images again.
func TestKilled(t *testing.T) {
	s := start(t)
	s.eventually("the images are being made", func() bool { return s.exists("making") })
	s.makeImages()
	s.eventually("the node is up", func() bool { return s.exists("up") && s.exists("init.pid") })
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	s.eventually("no process is left", func() bool { return len(s.left()) == 0 })

	if err := os.Remove(filepath.Join(s.state, "making")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	again := exec.CommandContext(ctx, s.cmd.Path)
	again.Env, again.Stderr = s.cmd.Env, os.Stderr // no standard input: it ends once it has begun
	if err := again.Run(); err != nil {
		t.Errorf("the next run.sh: %v", err)
	}
	s.nothingLeft()
	if s.exists("making") {
		t.Error("the images were made again")
	}
}

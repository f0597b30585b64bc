package rules

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A command that hangs is killed with all that it has started, and no other child of the process is: client-go may run one.
func TestTimeLimitKillsTheCommandAlone(t *testing.T) {
	other := exec.Command("sleep", "1000000")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()

	for name, script := range map[string]string{
		"the command itself":                 "exec sleep 1000000",
		"a child that holds its output":      "sleep 1000000 & wait",
		"a grandchild that holds its output": "(sleep 1000000 & wait) & wait",
	} {
		// The output is a pipe, as go-iptables has it: the wait ends only when nobody holds it any more.
		err := limited(10*time.Millisecond, func() error {
			_, err := exec.Command("sh", "-c", script).Output()
			return err
		})
		if !errors.Is(err, errHung) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := other.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("a child of somebody else was killed: %v", err)
	}
	var status unix.WaitStatus
	if pid, _ := unix.Wait4(other.Process.Pid, &status, unix.WNOHANG, nil); pid != 0 {
		t.Errorf("a child of somebody else has ended: %v", status)
	}
}

// A command that ends in time is left alone, and its error is its own.
func TestTimeLimitIsNotReached(t *testing.T) {
	if err := limited(time.Hour, func() error { return exec.Command("true").Run() }); err != nil {
		t.Error(err)
	}
	if err := limited(time.Hour, func() error { return exec.Command("false").Run() }); err == nil || errors.Is(err, errHung) {
		t.Errorf("a command that fails: %v", err)
	}
}

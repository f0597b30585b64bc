// A cgroup whose processes can be numbered, in whichever hierarchy this machine has.

package limits

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is where the pids controller is: of cgroup v1, or of v2.
type hierarchy struct {
	top string
	v2  bool
}

func findHierarchy(t *testing.T) hierarchy {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "pids"):
			return hierarchy{f[1], false}
		case f[2] == "cgroup2" && slices.Contains(strings.Fields(read(filepath.Join(f[1], "cgroup.controllers"))), "pids"):
			return hierarchy{f[1], true}
		}
	}
	t.Fatal("this test needs the pids controller in a cgroup hierarchy that is mounted: `mount -t cgroup2 none /sys/fs/cgroup`")
	return hierarchy{}
}

// makeCgroup makes one below parent, which lasts until the end of the test.
func (h hierarchy) makeCgroup(t *testing.T, parent string) string {
	t.Helper()
	if h.v2 {
		// EBUSY: a cgroup that has processes, and is not the root, can't have the controller for others below it.
		if err := os.WriteFile(filepath.Join(parent, "cgroup.subtree_control"), []byte("+pids"), 0); err != nil {
			t.Fatalf("enabling the pids controller below %s, for which nothing may run in it: %v", parent, err)
		}
	}
	dir, err := os.MkdirTemp(parent, "imds-guard-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A process may be in it for a moment after it has been waited for.
		for start := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			err := unix.Rmdir(dir)
			if err == nil {
				return
			}
			if time.Since(start) > time.Minute {
				t.Fatalf("removing %s: %v", dir, err)
			}
		}
	})
	return dir
}

// enter moves a child into a cgroup.
func (h hierarchy) enter(t *testing.T, dir string, c *child) {
	t.Helper()
	write(t, filepath.Join(dir, "cgroup.procs"), strconv.Itoa(c.cmd.Process.Pid))
	// Until it has ended it holds the cgroup.
	t.Cleanup(func() { c.ended() })
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

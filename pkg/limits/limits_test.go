// The limits as the kernel sets them: real processes in real cgroups.

package limits

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// setLimit limits a cgroup to n threads and processes.
func setLimit(t *testing.T, dir string, n int) {
	t.Helper()
	write(t, filepath.Join(dir, "pids.max"), strconv.Itoa(n))
}

// needs is how many threads and processes the child's Prepare will ask for, once it has set GOMAXPROCS.
func (c *child) needs() int {
	c.t.Helper()
	n, err := strconv.Atoi(c.do("needs"))
	if err != nil {
		c.t.Fatal(err)
	}
	return n
}

// few are the processors of the children whose needs a test asks for before Prepare.
var few = []string{"GOMAXPROCS=2"}

// TestThreadsAreThere: no thread can be created any more, and everything keeps working.
func TestThreadsAreThere(t *testing.T) {
	t.Parallel()
	h := findHierarchy(t)
	for _, procs := range []string{"", "GOMAXPROCS=1", "GOMAXPROCS=3"} {
		t.Run(procs, func(t *testing.T) {
			t.Parallel()
			dir := h.makeCgroup(t, h.top)
			c := startChild(t, []string{procs})
			h.enter(t, dir, c)
			c.mustDo("prepare")
			full, err := strconv.Atoi(read(filepath.Join(dir, "pids.current")))
			if err != nil {
				t.Fatal(err)
			}
			setLimit(t, dir, full)
			c.mustDo("work")
			if now := read(filepath.Join(dir, "pids.current")); now != strconv.Itoa(full) {
				t.Errorf("%s threads, and %d before the work", now, full)
			}
		})
	}
}

// TestThreadsAreMissing is what Prepare is for.
func TestThreadsAreMissing(t *testing.T) {
	t.Parallel()
	h := findHierarchy(t)
	dir := h.makeCgroup(t, h.top)
	c := startChild(t, nil)
	h.enter(t, dir, c)
	full, err := strconv.Atoi(read(filepath.Join(dir, "pids.current")))
	if err != nil {
		t.Fatal(err)
	}
	setLimit(t, dir, full)
	if answer := c.do("work"); answer != "" {
		t.Errorf("without Prepare the work is done: %q", answer)
	}
	if said := c.ended(); !noThread(said) {
		t.Errorf("without Prepare it ended by something else:\n%s", said)
	}
}

// TestRoom: as many as it asks for are enough, and with fewer it says so. A trial is less exact, since it only covers threads.
func TestRoom(t *testing.T) {
	t.Parallel()
	h := findHierarchy(t)
	for name, hidden := range map[string]bool{"seen": false, "hidden": true} {
		tooFew := 1
		if hidden {
			tooFew = commands + 1
		}
		for _, missing := range []int{0, tooFew} {
			t.Run(fmt.Sprintf("%s, %d missing", name, missing), func(t *testing.T) {
				t.Parallel()
				outer := h.makeCgroup(t, h.top)
				inner := h.makeCgroup(t, outer)
				c := startChild(t, few)
				h.enter(t, inner, c)
				if hidden {
					c.mustDo("hide %s %s", inner, h.top)
				}
				needs := c.needs()
				setLimit(t, outer, needs-missing)
				if missing == 0 {
					c.mustDo("prepare")
					c.mustDo("work")
					return
				}
				want := fmt.Sprintf("making threads: %s is %d, others use 0 of it, and the agent needs %d: raise it (podPidsLimit",
					filepath.Join(outer, "pids.max"), needs-missing, needs)
				if hidden {
					want = "limit that can't be seen from its container; raise it (podPidsLimit"
				}
				if answer := c.do("prepare"); !strings.Contains(answer, want) {
					t.Errorf("the answer is %q, want %q in it; on standard error: %s", answer, want, c.ended())
				}
			})
		}
	}
}

// TestOthersCount: threads that others in the cgroup have are not the agent's to use.
func TestOthersCount(t *testing.T) {
	t.Parallel()
	h := findHierarchy(t)
	dir := h.makeCgroup(t, h.top)
	c, other := startChild(t, few), startChild(t, few)
	h.enter(t, dir, c)
	h.enter(t, dir, other)
	other.mustDo("prepare") // it may have more than it had a moment ago
	setLimit(t, dir, c.needs()+1)
	if answer := c.do("prepare"); !strings.Contains(answer, ", others use ") {
		t.Errorf("the answer is %q; on standard error: %s", answer, c.ended())
	}
}

func TestProcessors(t *testing.T) {
	t.Parallel()
	for asked, want := range map[string]string{"1": "1", "7": "7"} {
		c := startChild(t, []string{"GOMAXPROCS=" + asked})
		c.mustDo("prepare")
		if got := c.do("procs"); got != want {
			t.Errorf("GOMAXPROCS=%s has become %s", asked, got)
		}
	}
	c := startChild(t, []string{"GOMAXPROCS="})
	c.mustDo("prepare")
	if got, err := strconv.Atoi(c.do("procs")); err != nil || got < 1 || got > maxProcs {
		t.Errorf("GOMAXPROCS is %d (%v)", got, err)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	for limits, want := range map[string]string{
		"512:512":     "512 of 512, commands 512",
		"600:600":     "600 of 600, commands 600",
		"6:4000":      "1024 of 4000, commands 1024",
		"3000:4000":   "1024 of 4000, commands 1024",
		"1024:1024":   "1024 of 1024, commands 1024",
		"12000:12000": "1024 of 12000, commands 1024",
	} {
		c := startChild(t, nil, withLimit(limits, false)...)
		c.mustDo("prepare")
		if got := c.do("limit"); got != want {
			t.Errorf("%s: the limit is %q, want %q", limits, got, want)
		}
	}
}

// TestTooFewFiles: with very few, the program does not even reach Prepare.
func TestTooFewFiles(t *testing.T) {
	t.Parallel()
	for _, hard := range []int{5, 6, 7, 8, 9, 10, 11, 12, 511} { // with 4 the loader may find no libraries
		c := startChild(t, nil, withLimit(fmt.Sprintf("%d:%d", hard, hard), false)...)
		want := fmt.Sprintf("raising the hard limit of open files (RLIMIT_NOFILE) from %d to 1024: operation not permitted; "+
			"at least 512 are needed: set LimitNOFILE= ", hard)
		said := ""
		if hard >= 12 {
			said = c.do("prepare")
		} else {
			said = c.ended()
		}
		if !strings.Contains(said, want) {
			t.Errorf("it says %q, want %q", said, want)
		}
	}
}

// A root that may raise the hard limit gets what is needed; one that may not is told so.
func TestHardLimitIsRaised(t *testing.T) {
	t.Parallel()
	c := startChild(t, nil, withLimit("256:256", true)...)
	if !mayRaise(t) {
		if said := c.do("prepare"); !strings.Contains(said, "RLIMIT_NOFILE) from 256 to 1024") {
			t.Errorf("it says %q", said)
		}
		return
	}
	c.mustDo("prepare")
	if got := c.do("limit"); got != "1024 of 1024, commands 1024" {
		t.Errorf("the limit is %q", got)
	}
}

// withLimit is the beginning of a command that has a limit of open files, and may raise it or not.
func withLimit(limits string, mayRaise bool) []string {
	command := []string{"prlimit", "--nofile=" + limits}
	if !mayRaise {
		command = append([]string{"setpriv", "--bounding-set=-sys_resource"}, command...)
	}
	return command
}

// mayRaise tells whether this process may raise a hard limit (CAP_SYS_RESOURCE).
func mayRaise(t *testing.T) bool {
	t.Helper()
	_, after, _ := strings.Cut(read("/proc/self/status"), "CapEff:")
	set, err := strconv.ParseUint(strings.Fields(after)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return set&(1<<24) != 0
}

// TestCgroupLimits has what the real cgroups above don't show: other versions, and namespaces.
func TestCgroupLimits(t *testing.T) {
	t.Parallel()
	top := t.TempDir()
	for file, text := range map[string]string{
		"kubepods/pids.max": "100", "kubepods/pids.current": "50",
		"kubepods/pod1/pids.max": "max", "kubepods/pod1/pids.current": "20",
		"kubepods/pod1/c/pids.max": "30", "kubepods/pod1/c/pids.current": "7", "kubepods/pod1/c/cgroup.events": "",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(top, file)), 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(top, file), text)
		if err := os.Chmod(filepath.Join(top, file), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const own = "/kubepods/pod1/c"
	v2 := func(root, dir string) string {
		return "22 1 0:1 / /proc rw - proc proc rw\n30 23 0:26 " + root + " " + dir + " rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
	}
	v1 := func(root, dir string) string {
		return "31 30 0:27 /x /none rw - cgroup cgroup rw,cpu\n38 30 0:35 " + root + " " + dir + " rw - cgroup cgroup rw,pids\n"
	}
	for name, c := range map[string]struct {
		cgroups, mounts string
		want            string
		hidden          bool
	}{
		"v2, the host's":             {"0::" + own, v2("/", top), "30/7 100/50", false},
		"v2, a namespace":            {"0::/", v2("/", top+own), "30/7", true},
		"v2, moved out of it":        {"0::/../other", v2("/", top+own), "30/7", true},
		"v2, a bind mount":           {"0::" + own, v2("/kubepods", top+"/kubepods"), "30/7 100/50", true},
		"v1, the host's":             {"4:cpu:/a\n3:pids:" + own, v1("/", top), "30/7 100/50", false},
		"v1, a container":            {"4:cpu:/a\n3:pids:" + own, v1(own, top+own), "30/7", true},
		"v1, with v2 beside it":      {"3:pids:" + own + "\n0::/", v1("/", top) + v2("/", "/none"), "30/7 100/50", false},
		"nothing mounted":            {"0::/", "22 1 0:1 / /proc rw - proc proc rw\n", "", true},
		"nothing can be read":        {"", "", "", true},
		"nothing that can be read":   {"x\n::\n", "- - -\n - \na b c - d\n", "", true},
		"v1, a cgroup not its own":   {"3:cpu:" + own, v1("/", top), "", true},
		"v2, no limit to be seen":    {"0::/kubepods/pod1", v2("/kubepods/pod1", top+"/kubepods/pod1"), "", true},
		"v2, the mount's name twice": {"0::" + own, v2("/", top+"/kubepods/pod1/none") + v2("/", top), "30/7 100/50", false},
	} {
		limits, hidden := cgroupLimits(c.cgroups, c.mounts)
		var got []string
		for _, l := range limits {
			got = append(got, fmt.Sprintf("%d/%d", l.max, l.used))
		}
		if strings.Join(got, " ") != c.want || hidden != c.hidden {
			t.Errorf("%s: %q, hidden %t; want %q, hidden %t", name, got, hidden, c.want, c.hidden)
		}
	}
}

// Whether the kernel will let the process have the threads.

package limits

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// limit is one of the bounds on the number of threads, at this moment.
type limit struct {
	name      string
	max, used int
	raise     string // what raises it
}

// checkRoom returns an error if the process may not have n threads in total plus its commands.
//
// RLIMIT_NPROC is not checked: the kernel exempts root from it (kernel/fork.c, copy_process).
func checkRoom(n int) error {
	cgroups, hidden := cgroupLimits(read("/proc/self/cgroup"), read("/proc/self/mountinfo"))
	own := ownThreads()
	for _, l := range append(cgroups, kernelLimits()...) {
		if others := max(0, l.used-own); l.max-others < n+commands {
			return fmt.Errorf("making threads: %s is %d, others use %d of it, and the agent needs %d: raise %s",
				l.name, l.max, others, n+commands, l.raise)
		}
	}
	if hidden {
		return try(n - own) // without the commands: the trial itself takes one or two more threads
	}
	return nil
}

// kernelLimits are the node's: kernel.threads-max and kernel.pid_max (proc(5)).
func kernelLimits() (limits []limit) {
	// /proc/loadavg: 0.21 0.13 0.04 2/173 10291, where 173 is the number of threads.
	load := strings.Fields(read("/proc/loadavg"))
	if len(load) < 4 {
		return nil
	}
	_, total, _ := strings.Cut(load[3], "/")
	used, err := strconv.Atoi(total)
	if err != nil {
		return nil
	}
	for _, name := range []string{"threads-max", "pid_max"} {
		if most, err := strconv.Atoi(read("/proc/sys/kernel/" + name)); err == nil {
			limits = append(limits, limit{"kernel." + name, most, used, "it with sysctl, or stop what uses so many"})
		}
	}
	return limits
}

// read returns a file's text without surrounding space, or nothing if it can't be read.
func read(file string) string {
	text, _ := os.ReadFile(file)
	return strings.TrimSpace(string(text))
}

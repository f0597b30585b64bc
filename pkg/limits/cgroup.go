// The limits of the cgroups that the process is in.

package limits

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// cgroupLimits returns the limits of the process's cgroup and of all visible cgroups above it, since each of them counts
// (Documentation/admin-guide/cgroup-v2.rst, PID; cgroup-v1/pids.rst), and whether there may be others that are hidden: a
// container sees at most its own cgroup, and the kubelet sets podPidsLimit on the pod's. The arguments are the contents of
// /proc/self/cgroup (cgroups(7)) and /proc/self/mountinfo (proc(5)).
func cgroupLimits(cgroups, mounts string) (limits []limit, hidden bool) {
	hidden = true // until a hierarchy is found
	for line := range strings.Lines(mounts) {
		// 36 35 98:0 /root /mount/point options [optional fields] - type source super-options
		before, after, _ := strings.Cut(strings.TrimSpace(line), " - ")
		mount, kind := strings.Fields(before), strings.Fields(after)
		if len(mount) < 5 || len(kind) < 3 {
			continue
		}
		controller := ""
		switch {
		case kind[0] == "cgroup" && slices.Contains(strings.Split(kind[2], ","), "pids"):
			controller = "pids"
		case kind[0] != "cgroup2":
			continue
		}
		own, ok := cgroupPath(cgroups, controller)
		if !ok {
			continue
		}
		if len(limits) == 0 {
			hidden = false
		}
		found, more := limitsUpTo(mount[4], strings.TrimPrefix(own, strings.TrimSuffix(mount[3], "/")))
		limits, hidden = append(limits, found...), hidden || more
	}
	return limits, hidden
}

// cgroupPath returns the path of the process's cgroup in a hierarchy: v2's if no controller is named.
func cgroupPath(cgroups, controller string) (string, bool) {
	for line := range strings.Lines(cgroups) {
		// 8:pids,cpu:/path
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			return f[2], true
		}
	}
	return "", false
}

// limitsUpTo returns the limits from a cgroup up to the top, where the hierarchy is mounted, and whether there are more above
// that.
func limitsUpTo(top, path string) (limits []limit, more bool) {
	dir := filepath.Join(top, path)
	if _, err := os.Stat(dir); err != nil || !strings.HasPrefix(dir+"/", top+"/") {
		dir = top // in a cgroup namespace the path means something else
	}
	for ; ; dir = filepath.Dir(dir) {
		most, err := strconv.Atoi(read(filepath.Join(dir, "pids.max")))
		used, err2 := strconv.Atoi(read(filepath.Join(dir, "pids.current")))
		if err == nil && err2 == nil { // "max" is none
			limits = append(limits, limit{filepath.Join(dir, "pids.max"), most, used,
				"it (podPidsLimit of the kubelet, TasksMax= of a systemd service, --pids-limit of a container runtime)"})
		}
		if dir == top || dir == "/" {
			break
		}
	}
	// Every cgroup but the root has these files; in v2, the first one exists only if the controller is enabled.
	for _, file := range []string{"pids.max", "cgroup.events"} {
		if _, err := os.Stat(filepath.Join(top, file)); err == nil {
			more = true
		}
	}
	return limits, more
}

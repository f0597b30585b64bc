// The pods' place: the cgroup v2 directory below which each pod has its own.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// roots are where the node's cgroup v2 may be mounted: where the manifests mount it, on a node with only cgroup v2, and beside
// cgroup v1.
var roots = []string{"/host/sys/fs/cgroup", "/sys/fs/cgroup", "/host/sys/fs/cgroup/unified", "/sys/fs/cgroup/unified"}

// names are the possible names of the directory for pods, depending on the kubelet's driver: systemd, cgroupfs, and systemd
// with a `cgroupRoot` (kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go).
var names = []string{"kubepods.slice", "kubepods", "*-kubepods.slice"}

// find returns the directory. given is what the user configured; if it is empty, the directory is searched for, also below a
// kubelet's `cgroupRoot`.
func find(given string) (string, error) {
	if given != "" {
		if err := isCgroup2(given); err != nil {
			return "", err
		}
		return given, nil
	}
	return findBelow(roots)
}

// findBelow takes the first root that has such a directory. If there are several in it, it takes the one that has processes:
// another may be left over from another driver, or belong to a kubelet in a container. If two have processes, there is no way
// to tell which is right.
func findBelow(roots []string) (string, error) {
	mounted := false
	for _, root := range roots {
		if isCgroup2(root) != nil {
			continue
		}
		mounted = true
		var found []string
		for _, name := range names {
			for _, pattern := range []string{name, "*/" + name, "*/*/" + name} {
				matches, err := filepath.Glob(filepath.Join(root, pattern))
				if err != nil {
					return "", fmt.Errorf("looking for the pods' cgroup: %w", err)
				}
				found = append(found, matches...)
			}
		}
		if len(found) > 1 {
			if inUse := slices.DeleteFunc(slices.Clone(found), isEmpty); len(inUse) > 0 {
				found = inUse
			}
		}
		switch len(found) {
		case 0:
		case 1:
			return found[0], nil
		default:
			return "", fmt.Errorf("each of %s may be the pods' cgroup; choose one with --pods-cgroup", strings.Join(found, ", "))
		}
	}
	if !mounted {
		return "", impossible{errors.New("no cgroup v2 is mounted")}
	}
	return "", impossible{fmt.Errorf("no cgroup v2 directory for pods (%s or %s) was found; if there is one, give it with --pods-cgroup",
		names[0], names[1])}
}

// isEmpty reports that there is no process in a cgroup or below it (cgroup.events, Documentation/admin-guide/cgroup-v2.rst).
func isEmpty(directory string) bool {
	events, err := os.ReadFile(filepath.Join(directory, "cgroup.events"))
	return err == nil && strings.Contains(string(events), "populated 0")
}

func isCgroup2(directory string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(directory, &s); err != nil {
		return &fs.PathError{Op: "statfs", Path: directory, Err: err}
	}
	if s.Type != unix.CGROUP2_SUPER_MAGIC {
		return fmt.Errorf("%s is not in a cgroup v2 hierarchy", directory)
	}
	return nil
}

// idOf returns the cgroup's id: its directory's inode (kernel/cgroup, kernfs on 64 bits).
func idOf(directory *os.File) (uint64, error) {
	var s unix.Stat_t
	if err := unix.Fstat(int(directory.Fd()), &s); err != nil {
		return 0, &fs.PathError{Op: "fstat", Path: directory.Name(), Err: err}
	}
	return s.Ino, nil
}

// nodeCookie returns the cookie of the node's network namespace, which must be that of the calling thread (SO_NETNS_COOKIE,
// Linux 5.14).
func nodeCookie() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening a socket: %w", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0, fmt.Errorf("reading the network namespace's cookie: %w", err)
	}
	return cookie, nil
}

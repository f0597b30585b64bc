// The pods' own cgroups.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
)

// podName is the name of a pod's cgroup, by the kubelet's driver: `pod` and the UID for cgroupfs, `kubepods-burstable-pod`, the UID
// with underscores for dashes, and `.slice` for systemd (kubernetes, pkg/kubelet/cm/cgroup_manager_linux.go).
var podName = regexp.MustCompile(`^(?:.*-)?pod([0-9a-f]{8}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{12})(?:\.slice)?$`)

// Pods returns the ids of the cgroups of all pods below a directory, by the pods' UIDs; and of these and all cgroups further down, whose
// they are.
func Pods(directory string) (ids map[string]uint64, owners map[uint64]string, err error) {
	ids, owners = map[string]uint64{}, map[uint64]string{}
	at := map[string]string{} // the owners, by path: a cgroup comes after the one that it is in
	err = walk(directory, func(path string, id uint64) bool {
		uid := at[filepath.Dir(path)]
		if uid == "" { // what is in a pod is the pod's, whatever the pod calls it
			if uid = podOf(filepath.Base(path)); uid != "" {
				ids[uid] = id
			}
		}
		if uid != "" {
			owners[id], at[path] = uid, uid
		}
		return true
	})
	if err != nil {
		return nil, nil, fmt.Errorf("listing the pods' cgroups: %w", err)
	}
	return ids, owners, nil
}

func podOf(name string) (uid string) {
	if match := podName.FindStringSubmatch(name); match != nil {
		return strings.ReplaceAll(match[1], "_", "-")
	}
	return ""
}

var errEnough = errors.New("found")

// walk visits the cgroups below a directory, to the deepest level at which pods are looked for, each with its id, until visit says that
// it is enough.
func walk(directory string, visit func(path string, id uint64) (goOn bool)) error {
	err := filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != directory { // it has gone meanwhile
			return nil
		}
		if err != nil || !entry.IsDir() || path == directory {
			return err
		}
		is, err := os.Lstat(path)
		if err != nil {
			return nil
		}
		if !visit(path, is.Sys().(*syscall.Stat_t).Ino) {
			return errEnough
		}
		if below, _ := filepath.Rel(directory, path); strings.Count(below, "/")+1 >= deepest {
			return fs.SkipDir
		}
		return nil
	})
	if errors.Is(err, errEnough) {
		return nil
	}
	return err
}

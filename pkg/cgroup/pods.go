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

// podName matches the name of a pod's cgroup, which depends on the kubelet's driver: `pod` and the UID for cgroupfs; for
// systemd `kubepods-burstable-pod`, the UID with underscores for dashes, and `.slice` (kubernetes,
// pkg/kubelet/cm/cgroup_manager_linux.go).
var podName = regexp.MustCompile(`^(?:.*-)?pod([0-9a-f]{8}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{12})(?:\.slice)?$`)

// Pods returns the ids of the cgroups of all pods below a directory, by the pods' UIDs. Cgroups inside a pod belong to that
// pod, whatever they are called.
func Pods(directory string) (ids map[string]uint64, err error) {
	ids = map[string]uint64{}
	err = walk(directory, func(path string, id uint64) error {
		uid := podOf(filepath.Base(path))
		if uid == "" {
			return nil
		}
		ids[uid] = id
		return fs.SkipDir
	})
	if err != nil {
		return nil, fmt.Errorf("listing the pods' cgroups: %w", err)
	}
	return ids, nil
}

func podOf(name string) (uid string) {
	if match := podName.FindStringSubmatch(name); match != nil {
		return strings.ReplaceAll(match[1], "_", "-")
	}
	return ""
}

// walk visits the cgroups below a directory, each with its id, down to the deepest level on which pods are looked for. visit
// returns what a [fs.WalkDirFunc] does.
func walk(directory string, visit func(path string, id uint64) error) error {
	return filepath.WalkDir(directory, func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != directory { // removed meanwhile
			return nil
		}
		if err != nil || !entry.IsDir() || path == directory {
			return err
		}
		is, err := os.Lstat(path)
		if err != nil {
			return nil
		}
		if err := visit(path, is.Sys().(*syscall.Stat_t).Ino); err != nil {
			return err
		}
		if below, _ := filepath.Rel(directory, path); strings.Count(below, "/")+1 >= deepest {
			return fs.SkipDir
		}
		return nil
	})
}

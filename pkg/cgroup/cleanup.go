// Removing everything that the layer installs.

package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf/link"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Cleanup removes every hook of a family and its counters, and returns the names of the hooks that it found. Links are detached
// as well, since a running agent may hold them.
func Cleanup(f imds.Family) (removed []string, err error) {
	removed, err = RemoveHooks(f)
	errs := []error{err}
	// v0.1.0 made the last one, before it counted all attempts.
	for _, path := range []string{counterOf(f), attemptsPin(), newsPin(), beginningsPin(), allowedPin(), filepath.Join(pins(), "host-asked")} {
		_, err := remove(path)
		errs = append(errs, err)
	}
	// The directory may still hold the other family's pins.
	if err := os.Remove(pins()); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return removed, fmt.Errorf("cleaning the cgroup layer of %s: %w", f, err)
	}
	return removed, nil
}

// RemoveHooks removes every hook of a family, and leaves the maps that both families count in.
func RemoveHooks(f imds.Family) (removed []string, err error) {
	var errs []error
	for _, h := range hooksOf(f, true) {
		there, err := removeHook(f, h)
		if there {
			removed = append(removed, h.name)
		}
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

func removeHook(f imds.Family, h hook) (there bool, err error) {
	var errs []error
	// What can't be opened is not a link; or, without CAP_BPF, it goes away with the pin unless an agent holds it.
	if l, err := link.LoadPinnedLink(pinOf(f, h, "link"), nil); err == nil {
		if is, err := l.Info(); err == nil && is.Cgroup() != nil {
			if err := l.Detach(); !errors.Is(err, link.ErrNotSupported) { // before Linux 5.9
				errs = append(errs, err)
			}
		}
		l.Close()
	}
	for _, what := range []string{"link", "program"} {
		removed, err := remove(pinOf(f, h, what))
		there = there || removed
		errs = append(errs, err)
	}
	return there, errors.Join(errs...)
}

// remove removes a pin, and one that was left half made.
func remove(path string) (there bool, err error) {
	_, err = os.Lstat(path)
	return err == nil, errors.Join(os.RemoveAll(path), os.RemoveAll(path+"-new"))
}

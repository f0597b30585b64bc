package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// text is a licence or notice of one module, or of a directory in it.
type text struct {
	module, version string
	path            string // in the module
	content         string
	notice          bool // not a licence, but has to be passed on, too
}

func (t text) String() string {
	if t.version == "" {
		return t.module + "/" + t.path
	}
	return t.module + "@" + t.version + "/" + t.path
}

type module struct {
	Path, Version, Dir string
	Main               bool
}

type listed struct {
	ImportPath, Dir string
	Standard        bool
	Module          *module
}

// texts returns the licences of all packages that those named are built of, on any of the systems, sorted.
func texts(repository string, systems []string, packages ...string) ([]text, error) {
	found := map[string]text{}
	for _, system := range systems {
		deps, err := dependencies(repository, system, packages...)
		if err != nil {
			return nil, err
		}
		for _, p := range deps {
			if p.Module == nil || p.Module.Main {
				continue
			}
			here, err := nearest(p)
			if err != nil {
				return nil, err
			}
			for _, t := range here {
				found[t.String()] = t
			}
		}
	}
	std, err := standardLibrary()
	if err != nil {
		return nil, err
	}
	found[""] = std
	var all []text
	for _, t := range found {
		all = append(all, t)
	}
	slices.SortFunc(all, func(a, b text) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

func dependencies(repository, system string, packages ...string) ([]listed, error) {
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}, packages...)...)
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	var all []listed
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		if !p.Standard {
			all = append(all, p)
		}
	}
}

// nearest returns the texts beside a package, or else above it, up to the module's root: a directory may have a licence of its own.
func nearest(p listed) ([]text, error) {
	for dir := p.Dir; ; dir = filepath.Dir(dir) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		var here []text
		licensed := false
		for _, entry := range entries {
			notice := isNamed(entry, "NOTICE")
			if !notice && !isNamed(entry, "LICENSE", "LICENCE", "COPYING") {
				continue
			}
			content, err := os.ReadFile(filepath.Join(dir, entry.Name()))
			if err != nil {
				return nil, err
			}
			path, err := filepath.Rel(p.Module.Dir, filepath.Join(dir, entry.Name()))
			if err != nil {
				return nil, err
			}
			here = append(here, text{p.Module.Path, p.Module.Version, filepath.ToSlash(path), string(content), notice})
			licensed = licensed || !notice
		}
		if licensed {
			return here, nil
		}
		if dir == p.Module.Dir {
			return nil, fmt.Errorf("%s@%s has no licence: use another module", p.Module.Path, p.Module.Version)
		}
	}
}

// isNamed takes LICENSE.md, LICENSE-APACHE and license.txt for LICENSE.
func isNamed(entry fs.DirEntry, names ...string) bool {
	name := strings.ToUpper(entry.Name())
	base := name[:len(name)-len(strings.TrimLeft(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ"))]
	return entry.Type().IsRegular() && slices.Contains(names, base) && filepath.Ext(name) != ".GO"
}

// standardLibrary is Go's own licence. Its version is not named: every builder has its own.
func standardLibrary() (text, error) {
	out, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return text{}, fmt.Errorf("go env GOROOT: %w", err)
	}
	content, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "LICENSE"))
	if err != nil {
		return text{}, fmt.Errorf("this Go has no licence, as a Linux distribution's may not: use the one from https://go.dev/dl: %w", err)
	}
	return text{module: "std", path: "LICENSE", content: string(content)}, nil
}

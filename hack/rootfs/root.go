package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// root is what goes into the image.
type root struct {
	from        *tree
	files       map[string]file
	directories []string // that no file makes
}

func newRoot(from *tree) *root { return &root{from: from, files: map[string]file{}} }

func (r *root) link(name, target string) { r.files[name] = file{link: target} }

// add puts the file that a path leads to under that path.
func (r *root) add(name string) error {
	f, err := r.from.find(name)
	if err == nil {
		r.files[merged(name)] = f
	}
	return err
}

// addPrograms adds programs and libraries, with all libraries that they need, and their loader.
func (r *root) addPrograms(names []string) error {
	have := map[string]bool{} // libraries and loaders, by the name that others need them by
	for todo := names; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if err := r.add(name); err != nil {
			return err
		}
		binary, err := elf.NewFile(bytes.NewReader(r.files[merged(name)].data))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if loader := interpreter(binary); loader != "" && !have[path.Base(loader)] {
			have[path.Base(loader)] = true
			todo = append(todo, loader)
		}
		needed, err := binary.ImportedLibraries()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		for _, library := range needed {
			if have[library] {
				continue
			}
			have[library] = true
			found := r.from.glob("/usr/lib/*-linux-gnu/" + library)
			if len(found) != 1 {
				return fmt.Errorf("%s needs %s, which is in %d of the packages' library directories", name, library, len(found))
			}
			todo = append(todo, found[0])
		}
	}
	return nil
}

// interpreter is the loader that a program names.
func interpreter(binary *elf.File) string {
	section := binary.Section(".interp")
	if section == nil {
		return ""
	}
	data, err := section.Data()
	if err != nil {
		return ""
	}
	return strings.TrimRight(string(data), "\x00")
}

// addRecords adds the licence and dpkg's record of each package that something was taken from.
func (r *root) addRecords() error {
	taken := map[string]bool{}
	for _, f := range r.files {
		if f.pkg != "" {
			taken[f.pkg] = true
		}
	}
	for pkg := range taken {
		if err := r.add("/usr/share/doc/" + pkg + "/copyright"); err != nil {
			return err
		}
		r.files["/var/lib/dpkg/status.d/"+pkg] = file{mode: 0o644, data: []byte(r.from.records[pkg])}
	}
	return nil
}

func (r *root) write(out string) error {
	for _, dir := range r.directories {
		if err := os.MkdirAll(filepath.Join(out, dir), 0o755); err != nil {
			return err
		}
	}
	for name, f := range r.files {
		name = filepath.Join(out, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		var err error
		if f.link != "" {
			err = os.Symlink(f.link, name)
		} else {
			err = os.WriteFile(name, f.data, f.mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

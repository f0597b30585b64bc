package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// usrmerged are the directories that are links into /usr. Packages know some of their files by the one name, and some by the other.
var usrmerged = []string{"bin", "lib", "lib64", "sbin"}

// file is one file of a package: a regular one, or a link.
type file struct {
	pkg  string
	mode os.FileMode
	data []byte
	link string
}

// tree is all that the packages have, by path.
type tree struct {
	files   map[string]file
	records map[string]string // by package: what dpkg would know of it
}

// merged is the path below /usr of a file that is known by a name outside.
func merged(name string) string {
	name = path.Clean("/" + name)
	for _, dir := range usrmerged {
		if strings.HasPrefix(name, "/"+dir+"/") {
			return "/usr" + name
		}
	}
	return name
}

func unpack(debs []string) (*tree, error) {
	t := &tree{files: map[string]file{}, records: map[string]string{}}
	for _, deb := range debs {
		if err := t.unpackOne(deb); err != nil {
			return nil, fmt.Errorf("%s: %w", path.Base(deb), err)
		}
	}
	return t, nil
}

func (t *tree) unpackOne(deb string) error {
	content, err := os.ReadFile(deb)
	if err != nil {
		return err
	}
	control, err := output("dpkg-deb", "--field", deb)
	if err != nil {
		return err
	}
	first, rest, _ := strings.Cut(control, "\n")
	pkg, ok := strings.CutPrefix(first, "Package: ")
	if !ok {
		return fmt.Errorf("the control file begins with %q", first)
	}
	// As in dpkg's own status. The checksum says which file it was, for the SBOM.
	t.records[pkg] = fmt.Sprintf("%s\nStatus: install ok installed\n%sSHA256: %x\n", first, rest, sha256.Sum256(content))

	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	archive, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("dpkg-deb: %w", err)
	}
	for reader := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch header.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(reader)
			if err != nil {
				return err
			}
			t.files[merged(header.Name)] = file{pkg: pkg, mode: header.FileInfo().Mode().Perm(), data: data}
		case tar.TypeSymlink:
			t.files[merged(header.Name)] = file{pkg: pkg, link: header.Linkname}
		case tar.TypeLink:
			t.files[merged(header.Name)] = t.files[merged(header.Linkname)]
		}
	}
}

func (t *tree) glob(pattern string) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(t.files)) {
		if ok, _ := path.Match(pattern, name); ok {
			names = append(names, name)
		}
	}
	return names
}

// find is the regular file that a path leads to, by whatever links.
func (t *tree) find(name string) (file, error) {
	return t.follow(merged(name), 0)
}

func (t *tree) follow(name string, depth int) (file, error) {
	if depth > 40 {
		return file{}, fmt.Errorf("%s: too many links", name)
	}
	at := "/"
	parts := strings.Split(strings.TrimPrefix(name, "/"), "/")
	for i, part := range parts {
		f, ok := t.files[path.Join(at, part)]
		if ok && f.link != "" {
			target := f.link
			if !path.IsAbs(target) {
				target = path.Join(at, target)
			}
			return t.follow(merged(path.Join(target, path.Join(parts[i+1:]...))), depth+1)
		}
		if ok && i == len(parts)-1 {
			return f, nil
		}
		at = path.Join(at, part)
	}
	return file{}, fmt.Errorf("no package has %s", name)
}

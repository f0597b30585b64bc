package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// makeManifests makes the chart's package and the plain manifests, both with the image filled in. It is named by its digest, too:
// whatever its tag is made to mean later, nodes run what this release has.
func (r *release) makeManifests(digest string) error {
	deploy := filepath.Join(r.source, "deploy")
	chart := filepath.Join(deploy, "chart/imds-guard")
	version := strings.TrimPrefix(r.version, "v")
	if err := edit(filepath.Join(chart, "Chart.yaml"), map[string]string{
		`(?m)^version: .*$`:    "version: " + version,
		`(?m)^appVersion: .*$`: "appVersion: " + r.version,
	}); err != nil {
		return err
	}
	if err := edit(filepath.Join(chart, "values.yaml"), map[string]string{
		`(?m)(^image:\n(?:  .*\n)*?  repository:) .*$`: "${1} " + r.image,
		`(?m)(^image:\n(?:  .*\n)*?  digest:) .*$`:     "${1} " + digest,
	}); err != nil {
		return err
	}
	if _, err := command(r.work, nil, r.helm, "package", chart, "--destination", r.work); err != nil {
		return err
	}
	name := "imds-guard-" + version + ".tgz"
	if err := r.repack(name); err != nil {
		return err
	}
	_, err := command(r.work, nil, filepath.Join(deploy, "render"), r.helm, r.out, r.image+":"+r.version+"@"+digest)
	return err
}

func untarGz(packed []byte, dir string) error {
	decompressed, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	for archive := tar.NewReader(decompressed); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		file := filepath.Join(dir, header.Name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(file, content, 0o644); err != nil {
			return err
		}
	}
}

// edit replaces in a file what each expression finds, which must be there once.
func edit(file string, replacements map[string]string) error {
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for expression, replacement := range replacements {
		re := regexp.MustCompile(expression)
		if n := len(re.FindAll(content, -1)); n != 1 {
			return fmt.Errorf("%s has %d lines for %s, not one", file, n, expression)
		}
		content = re.ReplaceAll(content, []byte(replacement))
	}
	return os.WriteFile(file, content, 0o644)
}

// repack writes what helm has packed, but for the times in it, which are those of the packing.
func (r *release) repack(name string) error {
	packed, err := os.ReadFile(filepath.Join(r.work, name))
	if err != nil {
		return err
	}
	unpacked := filepath.Join(r.work, "chart")
	if err := untarGz(packed, unpacked); err != nil {
		return err
	}
	for _, file := range legal {
		content, err := os.ReadFile(filepath.Join(r.source, file))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(unpacked, "imds-guard", file), content, 0o644); err != nil {
			return err
		}
	}
	content, err := tarGz(func(archive *tar.Writer) error { return addTree(archive, unpacked, "", r.time) })
	if err != nil {
		return err
	}
	return r.write(name, content)
}

package main

import (
	"archive/tar"
	"fmt"
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
	unpacked := filepath.Join(r.work, "chart")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		return err
	}
	if _, err := command(unpacked, nil, "tar", "-xzf", filepath.Join(r.work, name)); err != nil {
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

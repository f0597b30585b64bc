package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"errors"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

// index reads the archive as a registry's client does.
func (m *made) index(t *testing.T) v1.ImageIndex {
	t.Helper()
	dir := t.TempDir()
	for archive := tar.NewReader(bytes.NewReader(m.files["imds-guard_"+testVersion+"_image.tar"])); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		extract(t, archive, header, dir)
	}
	all, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := all.IndexManifest()
	if err != nil || len(manifest.Manifests) != 1 {
		t.Fatalf("one image, by its tag: %+v, %v", manifest, err)
	}
	one := manifest.Manifests[0]
	if one.Annotations["org.opencontainers.image.ref.name"] != testVersion ||
		one.Annotations["io.containerd.image.name"] != testImage+":"+testVersion {
		t.Errorf("the image is called %v", one.Annotations)
	}
	index, err := all.ImageIndex(one.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return index
}

func (m *made) indexDigest(t *testing.T) string {
	t.Helper()
	digest, err := m.index(t).Digest()
	if err != nil {
		t.Fatal(err)
	}
	return digest.String()
}

func extract(t *testing.T, archive io.Reader, header *tar.Header, dir string) {
	t.Helper()
	name := filepath.Join(dir, header.Name)
	var err error
	switch header.Typeflag {
	case tar.TypeDir:
		err = os.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		err = os.Symlink(header.Linkname, name)
	default:
		var content []byte
		if content, err = io.ReadAll(archive); err == nil {
			err = os.WriteFile(name, content, header.FileInfo().Mode())
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *made) testImage(t *testing.T) {
	index := m.index(t)
	if err := validate.Index(index); err != nil {
		t.Error(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(manifest.Manifests) != len(nodes) {
		t.Errorf("%d platforms", len(manifest.Manifests))
	}
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, one := range manifest.Manifests {
		image, err := index.Image(one.Digest)
		if err != nil {
			t.Fatal(err)
		}
		arch := one.Platform.Architecture
		t.Run(arch, func(t *testing.T) {
			m.testConfig(t, image, arch)
			root := t.TempDir()
			unpackLayers(t, image, root)
			testLinked(t, root, machines[arch])
			released := unpacked(t, "", m.files["imds-guard_"+testVersion+"_linux_"+arch+".tar.gz"])
			if got, err := os.ReadFile(filepath.Join(root, "usr/local/bin/imds-guard")); err != nil || !bytes.Equal(got, released["imds-guard"]) {
				t.Errorf("its program is not the released one (%v)", err)
			}
			if arch == "amd64" { // this test runs there, as CI does
				testRuns(t, root)
			}
		})
	}
}

func (m *made) testConfig(t *testing.T, image v1.Image, arch string) {
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Architecture != arch || config.OS != "linux" {
		t.Errorf("it says it is for %s/%s", config.OS, config.Architecture)
	}
	c := config.Config
	if !slices.Equal(c.Entrypoint, []string{"/usr/local/bin/imds-guard"}) || !slices.Equal(c.Cmd, []string{"run"}) ||
		!slices.Equal(c.Env, []string{"PATH=/usr/local/bin:/usr/sbin:/usr/bin"}) {
		t.Errorf("it starts %v %v with %v", c.Entrypoint, c.Cmd, c.Env)
	}
	for label, want := range map[string]string{
		"title": "imds-guard", "licenses": "Apache-2.0", "version": testVersion, "revision": m.commit[:12],
	} {
		if got := c.Labels["org.opencontainers.image."+label]; got != want {
			t.Errorf("its label %s is %q, not %q", label, got, want)
		}
	}
}

func unpackLayers(t *testing.T, image v1.Image, root string) {
	t.Helper()
	layers, err := image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, layer := range layers {
		content, err := layer.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		for archive := tar.NewReader(content); ; {
			header, err := archive.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			// One name for each place: scanners, which compare names, would take these for two.
			if strings.HasPrefix(header.Name, "/") {
				t.Fatalf("a layer has %s, with a leading slash", header.Name)
			}
			extract(t, archive, header, root)
		}
	}
}

// testLinked wants every program and library of the one machine, and all that they need in the image.
func testLinked(t *testing.T, root string, machine elf.Machine) {
	checked := 0
	needed, have := map[string]string{}, map[string]bool{}
	err := filepath.WalkDir(root, func(file string, entry os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		have[path.Base(file)] = true
		if !entry.Type().IsRegular() {
			return nil
		}
		binary, err := elf.Open(file)
		if err != nil {
			return nil // a text
		}
		defer binary.Close()
		checked++
		if binary.Machine != machine {
			t.Errorf("%s is for %s", file, binary.Machine)
		}
		libraries, err := binary.ImportedLibraries()
		for _, library := range libraries {
			needed[library] = file
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 100 {
		t.Errorf("%d programs and libraries, of more than a hundred", checked)
	}
	for library, by := range needed {
		if !have[library] {
			t.Errorf("%s, which %s needs, is missing", library, by)
		}
	}
}

// testRuns runs what the agent runs, in the image.
func testRuns(t *testing.T, root string) {
	for program, want := range map[string]string{
		"/usr/sbin/iptables-nft":            "(nf_tables)",
		"/usr/sbin/ip6tables-legacy":        "(legacy)",
		"/usr/sbin/iptables-legacy-restore": "(legacy)",
		"/usr/sbin/modprobe":                "kmod version",
		"/usr/local/bin/imds-guard":         testVersion,
	} {
		flag := "--version"
		if strings.HasSuffix(program, "imds-guard") {
			flag = "version"
		}
		cmd := exec.Command(program, flag)
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), want) {
			t.Errorf("%s %s: %v: %s", program, flag, err, out)
		}
	}
}

// What a release has to have in it.
package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	cdx "github.com/CycloneDX/cyclonedx-go"
	"sigs.k8s.io/yaml"
)

// made is a release, by file name.
type made struct {
	dir, commit string
	files       map[string][]byte
}

func readMade(t *testing.T, tree string) *made {
	t.Helper()
	m := &made{dir: filepath.Join(tree, "dist"), files: map[string][]byte{}}
	var err error
	if m.commit, err = command(tree, nil, "git", "rev-parse", "HEAD"); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if m.files[entry.Name()], err = os.ReadFile(filepath.Join(m.dir, entry.Name())); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func sum(content []byte) string { return fmt.Sprintf("%x", sha256.Sum256(content)) }

func (m *made) testFiles(t *testing.T) {
	want := []string{
		"SHA256SUMS", "cleanup.yaml", "daemonset-hardened.yaml", "daemonset.yaml", "imds-guard-9.8.7-rc.1.tgz",
		"krew.yaml", "monitoring.yaml", "provenance.intoto.json", "imds-guard_" + testVersion + "_image.tar",
	}
	for _, p := range nodes {
		want = append(want, fmt.Sprintf("imds-guard_%s_image_%s.cdx.json", testVersion, p),
			fmt.Sprintf("imds-guard_%s_%s.tar.gz", testVersion, p), fmt.Sprintf("imds-guard_%s_%s.cdx.json", testVersion, p))
	}
	for _, p := range testPlugins {
		want = append(want, m.plugin(p), fmt.Sprintf("kubectl-imds_guard_%s_%s.cdx.json", testVersion, p))
	}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(m.files)); !slices.Equal(got, want) {
		t.Errorf("there are %v, not %v", got, want)
	}
}

func (m *made) plugin(p platform) string {
	if p.os == "windows" {
		return fmt.Sprintf("kubectl-imds_guard_%s_%s.zip", testVersion, p)
	}
	return fmt.Sprintf("kubectl-imds_guard_%s_%s.tar.gz", testVersion, p)
}

func (m *made) testChecksums(t *testing.T) {
	cmd := exec.Command("sha256sum", "--check", "--strict", checksums)
	cmd.Dir = m.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if n := bytes.Count(out, []byte(": OK")); n != len(m.files)-1 {
		t.Errorf("%d of %d files are in it", n, len(m.files)-1)
	}
}

func (m *made) testPrograms(t *testing.T) {
	for _, p := range nodes {
		m.testProgram(t, fmt.Sprintf("imds-guard_%s_%s.tar.gz", testVersion, p), agent, p)
	}
	for _, p := range testPlugins {
		m.testProgram(t, m.plugin(p), plugin, p)
	}
}

func (m *made) testProgram(t *testing.T, archive, program string, p platform) {
	files := unpacked(t, archive, m.files[archive])
	program += p.suffix()
	for _, name := range legal {
		if len(files[name]) == 0 {
			t.Errorf("%s has no %s", archive, name)
		}
	}
	info, err := buildinfo.Read(bytes.NewReader(files[program]))
	if err != nil {
		t.Errorf("%s: %s: %v", archive, program, err)
		return
	}
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
	}
	// The least of each kind of processor, so that it runs on all.
	for level, want := range map[string]string{"GOAMD64": "v1", "GOARM64": "v8.0"} {
		if got, ok := settings[level]; ok && got != want {
			t.Errorf("%s: %s needs %s=%s", archive, program, level, got)
		}
	}
	if settings["GOOS"] != p.os || settings["GOARCH"] != p.arch || settings["CGO_ENABLED"] != "0" {
		t.Errorf("%s: %s is built for %v", archive, program, settings)
	}
	if p != nodes[0] { // this test runs on amd64, as CI does
		return
	}
	file := filepath.Join(t.TempDir(), program)
	if err := os.WriteFile(file, files[program], 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(file, "version").CombinedOutput()
	name := strings.Replace(program, "kubectl-imds_guard", "kubectl imds-guard", 1)
	if err != nil || !strings.Contains(string(out), name+" "+testVersion+"\ncommit "+m.commit[:12]+"\n") {
		t.Errorf("%s version: %v: %s", program, err, out)
	}
}

// unpacked are the files of a .tar.gz, .tgz or .zip. They have to be of root's, as far as the format knows.
func unpacked(t *testing.T, name string, archive []byte) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	if strings.HasSuffix(name, ".zip") {
		reader, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range reader.File {
			content, err := entry.Open()
			if err != nil {
				t.Fatal(err)
			}
			if files[entry.Name], err = io.ReadAll(content); err != nil {
				t.Fatal(err)
			}
		}
		return files
	}
	reader, err := gzip.NewReader(bytes.NewReader(archive))
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for archive := tar.NewReader(reader); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if header.Uid != 0 || header.Gid != 0 || header.Uname != "" {
			t.Errorf("%s: %s is of user %d %q", name, header.Name, header.Uid, header.Uname)
		}
		if files[header.Name], err = io.ReadAll(archive); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *made) testKrew(t *testing.T) {
	var manifest krew
	if err := yaml.UnmarshalStrict(m.files["krew.yaml"], &manifest); err != nil {
		t.Fatal(err)
	}
	if manifest.Spec.Version != testVersion || len(manifest.Spec.Platforms) != len(testPlugins) {
		t.Errorf("version %s, %d platforms", manifest.Spec.Version, len(manifest.Spec.Platforms))
	}
	for _, p := range manifest.Spec.Platforms {
		archive := path.Base(p.URI)
		if p.URI != "https://github.com/imds-guard/imds-guard/releases/download/"+testVersion+"/"+archive {
			t.Errorf("it would be downloaded from %s", p.URI)
		}
		if got := sum(m.files[archive]); got != p.SHA256 {
			t.Errorf("%s has the checksum %s, not %s", archive, got, p.SHA256)
		}
		if files := unpacked(t, archive, m.files[archive]); files[p.Bin] == nil {
			t.Errorf("%s has no %s", archive, p.Bin)
		}
	}
}

func (m *made) testSBOMs(t *testing.T) {
	for name, content := range m.files {
		if !strings.HasSuffix(name, ".cdx.json") {
			continue
		}
		var bom cdx.BOM
		if err := cdx.NewBOMDecoder(bytes.NewReader(content), cdx.BOMFileFormatJSON).Decode(&bom); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var purls []string
		for _, component := range *bom.Components {
			purls = append(purls, component.PackageURL)
		}
		want := []string{`^pkg:golang/std@1\.\d`, `^pkg:golang/github\.com/spf13/cobra@v1\.\d`, `^pkg:golang/k8s\.io/apimachinery@v0\.\d`}
		if strings.Contains(name, "_image_") {
			arch := strings.TrimSuffix(name[strings.LastIndex(name, "_")+1:], ".cdx.json")
			for _, pkg := range []string{"base-files", "iptables", "kmod", "libc6", "libxtables12", "libmnl0"} {
				want = append(want, `^pkg:deb/debian/`+pkg+`@\S+\?arch=`+arch+`&distro=debian-12`)
			}
		}
		for _, expression := range want {
			if !slices.ContainsFunc(purls, regexp.MustCompile(expression).MatchString) {
				t.Errorf("%s has no component that matches %s, in %v", name, expression, purls)
			}
		}
	}
}

func (m *made) testChart(t *testing.T) {
	name := "imds-guard-9.8.7-rc.1.tgz"
	files := unpacked(t, name, m.files[name])
	for _, file := range append(legal, "Chart.yaml", "values.schema.json", "templates/daemonset.yaml") {
		if files["imds-guard/"+file] == nil {
			t.Errorf("the chart has no %s", file)
		}
	}
	for file := range files {
		if strings.Contains(file, "stray") {
			t.Errorf("the chart has %s, which no commit has", file)
		}
	}
	chart, err := command(m.dir, nil, os.Getenv("HELM"), "show", "chart", name)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nversion: 9.8.7-rc.1", "\nappVersion: " + testVersion} {
		if !strings.Contains("\n"+chart, want) {
			t.Errorf("no %q in\n%s", want, chart)
		}
	}
	rendered, err := command(m.dir, nil, os.Getenv("HELM"), "template", name)
	if err != nil {
		t.Fatal(err)
	}
	m.testImagesOf(t, name, rendered)
}

func (m *made) testManifests(t *testing.T) {
	for _, name := range []string{"daemonset.yaml", "daemonset-hardened.yaml", "cleanup.yaml"} {
		m.testImagesOf(t, name, string(m.files[name]))
	}
}

// testImagesOf wants nothing but the released image, by its digest.
func (m *made) testImagesOf(t *testing.T, name, manifest string) {
	t.Helper()
	want := testImage + ":" + testVersion + "@" + m.indexDigest(t)
	found := regexp.MustCompile(`(?m)^[ -]*image: *(.*)$`).FindAllStringSubmatch(manifest, -1)
	if len(found) == 0 {
		t.Errorf("%s has no image", name)
	}
	for _, image := range found {
		if strings.Trim(image[1], `"`) != want {
			t.Errorf("%s has the image %s, not %s", name, image[1], want)
		}
	}
}

func (m *made) provenance(t *testing.T) statement {
	t.Helper()
	var s statement
	if err := json.Unmarshal(m.files["provenance.intoto.json"], &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func (m *made) madeOf(t *testing.T) []resource {
	t.Helper()
	return m.provenance(t).Predicate.BuildDefinition.ResolvedDependencies
}

func (m *made) testProvenance(t *testing.T) {
	s := m.provenance(t)
	subjects := map[string]string{}
	for _, subject := range s.Subject {
		subjects[subject.Name] = subject.Digest["sha256"]
	}
	for name, content := range m.files {
		if name != checksums && name != "provenance.intoto.json" && subjects[name] != sum(content) {
			t.Errorf("%s is said to be %q", name, subjects[name])
		}
	}
	given := s.Predicate.BuildDefinition.ExternalParameters
	if given["VERSION"] != testVersion || given["IMAGE"] != testImage || given["PLUGINS"] != "linux/amd64 windows/amd64" {
		t.Errorf("made with %v", given)
	}
	of := m.madeOf(t)
	if of[0].Digest["gitCommit"] != m.commit {
		t.Errorf("made of %v, not of the commit %s", of[0], m.commit)
	}
	if !slices.ContainsFunc(of, func(r resource) bool {
		return strings.HasPrefix(r.URI, "pkg:deb/debian/libc6@") && len(r.Digest["sha256"]) == 64
	}) {
		t.Errorf("no word of Debian's packages in %v", of)
	}
}

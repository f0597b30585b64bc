// A whole release, made twice, and looked into. HELM is helm's path: `make test-release` builds it.
package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const (
	testVersion = "v9.8.7-rc.1"
	testImage   = "registry.example.com/team/imds-guard"
)

// testPlugins are fewer than there are: each takes a minute to compile where Go's cache is empty. One for each kind of archive.
var testPlugins = []platform{{"linux", "amd64"}, {"windows", "amd64"}}

func TestRelease(t *testing.T) {
	first, second := clone(t), clone(t)
	for _, dir := range []string{first, second} {
		if out, err := makeRelease(t, dir, "VERSION="+testVersion, "IMAGE="+testImage, "PLUGINS=linux/amd64 windows/amd64"); err != nil {
			t.Fatalf("%v:\n%s", err, out)
		}
	}
	made := readMade(t, first)
	t.Run("the same bytes each time", func(t *testing.T) {
		again := readMade(t, second)
		if len(again.files) != len(made.files) {
			t.Errorf("%d files were made at first, then %d", len(made.files), len(again.files))
		}
		for name, content := range made.files {
			if string(again.files[name]) != string(content) {
				t.Errorf("%s differs", name)
			}
		}
	})
	t.Run("files", made.testFiles)
	t.Run("checksums", made.testChecksums)
	t.Run("programs", made.testPrograms)
	t.Run("krew", made.testKrew)
	t.Run("image", made.testImage)
	t.Run("SBOMs", made.testSBOMs)
	t.Run("chart", made.testChart)
	t.Run("manifests", made.testManifests)
	t.Run("provenance", made.testProvenance)
}

func TestRefused(t *testing.T) {
	tree := clone(t)
	for _, test := range []struct {
		name   string
		args   []string
		change func() error
		want   []string
	}{
		{"nothing given", nil, nil, []string{"VERSION is missing: give", "IMAGE is missing: give"}},
		{"no version", []string{"VERSION=1.2.3", "IMAGE=" + testImage}, nil, []string{"VERSION=1.2.3 is not"}},
		{"half a version", []string{"VERSION=v1.2", "IMAGE=" + testImage}, nil, []string{"VERSION=v1.2 is not"}},
		{"build metadata", []string{"VERSION=v1.2.3+4", "IMAGE=" + testImage}, nil, []string{"VERSION=v1.2.3+4 is not"}},
		{"a tag", []string{"VERSION=v1.2.3", "IMAGE=" + testImage + ":v1.2.3"}, nil, []string{"IMAGE=" + testImage + ":v1.2.3 is not"}},
		{"no platform", []string{"VERSION=v1.2.3", "IMAGE=" + testImage, "PLUGINS=linux"}, nil, []string{"PLUGINS has linux, which is not"}},
		{"no address", []string{"VERSION=v1.2.3", "IMAGE=" + testImage, "URL=ftp"}, nil, []string{"URL=ftp is not"}},
		{"tagged elsewhere", []string{"VERSION=v1.2.3", "IMAGE=" + testImage}, func() error {
			// Not HEAD~1: a shallow clone has none.
			commit, err := command(tree, nil, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit-tree", "-m", "another", "HEAD^{tree}")
			if err != nil {
				return err
			}
			_, err = command(tree, nil, "git", "tag", "v1.2.3", strings.TrimSpace(commit))
			return err
		}, []string{"VERSION=v1.2.3 is tagged already"}},
		{"changed work tree", []string{"VERSION=v2.0.0", "IMAGE=" + testImage}, func() error {
			return os.WriteFile(filepath.Join(tree, "deploy/new.yaml"), nil, 0o644)
		}, []string{"the work tree has changes (?? deploy/new.yaml)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.change != nil {
				if err := test.change(); err != nil {
					t.Fatal(err)
				}
			}
			out, err := makeRelease(t, tree, test.args...)
			if err == nil {
				t.Error("it was not refused")
			}
			for _, want := range test.want {
				if !strings.Contains(out, "release: "+want) {
					t.Errorf("no word of %q in:\n%s", want, out)
				}
			}
			if n := strings.Count(out, "release: "); n != len(test.want) {
				t.Errorf("%d errors instead of %d:\n%s", n, len(test.want), out)
			}
			if left, _ := filepath.Glob(filepath.Join(tree, "dist*")); len(left) > 0 {
				t.Errorf("%v was made", left)
			}
		})
	}
}

// clone is the work tree, with changes to files that git knows, in a place of its own.
func clone(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git := func(args ...string) string {
		t.Helper()
		out, err := command("../..", nil, "git", args...)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	commit := git("-c", "user.name=test", "-c", "user.email=test@example.com", "stash", "create")
	if commit == "" {
		commit = "HEAD"
	}
	commit = git("rev-parse", commit)
	git("clone", "--quiet", "--no-checkout", ".", dir)
	git("-C", dir, "fetch", "--quiet", "origin", commit)
	git("-C", dir, "checkout", "--quiet", "--detach", commit)
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.Getenv("HELM"), filepath.Join(dir, "bin/helm")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// makeRelease runs what the releaser runs. Not an option of theirs: -o, by which the helm that is there will do.
func makeRelease(t *testing.T, dir string, variables ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("make", append([]string{"--no-print-directory", "-o", "bin/helm", "release"}, variables...)...)
	cmd.Dir = dir
	for _, variable := range os.Environ() {
		// Those of the make that runs this test.
		if name, _, _ := strings.Cut(variable, "="); name != "MAKEFLAGS" && name != "MAKELEVEL" && name != "VERSION" && name != "IMAGE" {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, "TMPDIR="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A whole release, made twice, and looked into. HELM is helm's path: `make test-release` builds it.
package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
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
	repository := current(t)
	builders := []builder{
		{tree: clone(t, repository), umask: "022"},
		// Somebody else, who compiles their own programs in another way.
		{tree: clone(t, repository), umask: "077", env: []string{"TZ=Pacific/Auckland", "GOARM64=v9.0", "GOFLAGS=-tags=elsewhere"}},
	}
	hide(t, builders[0].tree)
	both := []*made{builders[0].make(t), builders[1].make(t)}
	// Debian publishes when it wants to, in between as well: then the older one is made again.
	for again := 0; !reflect.DeepEqual(both[0].madeOf(t), both[1].madeOf(t)); again++ {
		if again == 3 {
			t.Fatalf("made of other things each time: %v, %v", both[0].madeOf(t), both[1].madeOf(t))
		}
		both[again%2] = builders[again%2].make(t)
	}
	made := both[0]
	t.Run("the same bytes each time", func(t *testing.T) {
		if len(both[1].files) != len(made.files) {
			t.Errorf("one has %d files, the other %d", len(made.files), len(both[1].files))
		}
		for name, content := range made.files {
			if string(both[1].files[name]) != string(content) {
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
	tree := clone(t, current(t))
	// These are not what the releaser says on the command line.
	t.Setenv("URL", "ftp")
	t.Setenv("PLUGINS", "linux")
	t.Setenv("SOURCES", "/nonexistent")
	const to = "IMAGE=" + testImage
	for _, test := range []struct {
		name   string
		args   []string
		change func() error
		want   []string
	}{
		{"nothing given", nil, nil, []string{"VERSION is missing: give", "IMAGE is missing: give"}},
		{"no version", []string{"VERSION=1.2.3", to}, nil, []string{"VERSION=1.2.3 is not"}},
		{"half a version", []string{"VERSION=v1.2", to}, nil, []string{"VERSION=v1.2 is not"}},
		{"build metadata", []string{"VERSION=v1.2.3+4", to}, nil, []string{"VERSION=v1.2.3+4 is not"}},
		{"a tag", []string{"VERSION=v1.2.3", to + ":v1.2.3"}, nil, []string{to + ":v1.2.3 is not"}},
		{"no registry", []string{"VERSION=v1.2.3", "IMAGE=imds-guard"}, nil, []string{"IMAGE=imds-guard lacks the registry"}},
		{"no path", []string{"VERSION=v1.2.3", "IMAGE=registry.example.com"}, nil, []string{"IMAGE=registry.example.com lacks the registry"}},
		{"no platforms", []string{"VERSION=v1.2.3", to, "PLUGINS="}, nil, []string{"PLUGINS is empty"}},
		{"wrong platforms", []string{"VERSION=v1.2.3", to, "PLUGINS=linux linux/ linux/amd65 linux/amd64 linux/amd64"}, nil, []string{
			"PLUGINS has linux, which is not", "PLUGINS has linux/, which is not", "PLUGINS has linux/amd65, which is not",
			"PLUGINS has linux/amd64 twice",
		}},
		{"no address", []string{"VERSION=v1.2.3", to, "URL=ftp"}, nil, []string{"URL=ftp is not"}},
		{"no sources", []string{"VERSION=v1.2.3", to, "SOURCES=/nonexistent"}, nil, []string{"SOURCES=/nonexistent can't be read"}},
		{"tagged elsewhere", []string{"VERSION=v1.2.3", to}, func() error {
			// Not HEAD~1: a shallow clone has none.
			commit, err := command(tree, nil, "git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit-tree", "-m", "another", "HEAD^{tree}")
			if err != nil {
				return err
			}
			_, err = command(tree, nil, "git", "tag", "v1.2.3", strings.TrimSpace(commit))
			return err
		}, []string{"VERSION=v1.2.3 is tagged already"}},
		{"changed work tree", []string{"VERSION=v2.0.0", to}, func() error {
			if _, err := command(tree, nil, "git", "config", "status.showUntrackedFiles", "no"); err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(tree, "deploy/new.yaml"), nil, 0o644)
		}, []string{"the work tree has changes (?? deploy/new.yaml)"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.change != nil {
				if err := test.change(); err != nil {
					t.Fatal(err)
				}
			}
			out, err := builder{tree: tree, umask: "022"}.release(t, test.args...)
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

// current is a repository of one commit, with the work tree as it is: that may itself have changes, a short history or none.
func current(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	git(t, "init", "--quiet", dir)
	here := []string{"-c", "user.name=test", "-c", "user.email=test@example.com", "--git-dir", filepath.Join(dir, ".git"), "--work-tree", "."}
	git(t, append(here, "add", "--all")...)
	git(t, append(here, "commit", "--quiet", "--message", "the work tree")...)
	return dir
}

func git(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command("../..", nil, "git", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// clone is a work tree of such a repository, in a place of its own.
func clone(t *testing.T, repository string) string {
	t.Helper()
	dir := t.TempDir()
	git(t, "clone", "--quiet", repository, dir)
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.Getenv("HELM"), filepath.Join(dir, "bin/helm")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// hide changes a work tree in ways that `git status` is silent about.
func hide(t *testing.T, tree string) {
	t.Helper()
	git(t, "-C", tree, "update-index", "--assume-unchanged", "LICENSE")
	for name, content := range map[string]string{
		"LICENSE":           "another licence\n",
		".git/info/exclude": "*~\n",
		"deploy/chart/imds-guard/templates/stray.yaml~": "apiVersion: v1\nkind: Secret\nmetadata:\n  name: stray\n",
	} {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if changes := git(t, "-C", tree, "status", "--porcelain"); changes != "" {
		t.Fatalf("git does see %s", changes)
	}
}

// builder is somebody who makes releases.
type builder struct {
	tree, umask string
	env         []string
}

func (b builder) make(t *testing.T) *made {
	t.Helper()
	out, err := b.release(t, "VERSION="+testVersion, "IMAGE="+testImage, "PLUGINS=linux/amd64 windows/amd64")
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	t.Log("\n" + out)
	return readMade(t, b.tree)
}

// release runs what the releaser runs. Not an option of theirs: -o, by which the helm that is there will do.
func (b builder) release(t *testing.T, variables ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("sh", append([]string{"-c", `umask "$0" && exec make --no-print-directory -o bin/helm release "$@"`, b.umask}, variables...)...)
	cmd.Dir = b.tree
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		// Those of the make that runs this test, and of whoever runs that.
		if !slices.Contains([]string{"MAKEFLAGS", "MAKELEVEL", "VERSION", "IMAGE", "URL", "PLUGINS", "SOURCES"}, name) {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(append(cmd.Env, "TMPDIR="+t.TempDir()), b.env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

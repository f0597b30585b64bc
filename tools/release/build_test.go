package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// build compiles a small program of ours as a release is compiled, by somebody with these settings.
func build(t *testing.T, settings ...string) ([]byte, error) {
	t.Helper()
	dir := t.TempDir()
	if _, err := command("../..", settings, "hack/build", dir, "./hack/rootfs"); err != nil {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%v was made all the same", left)
		}
		return nil, err
	}
	content, err := os.ReadFile(filepath.Join(dir, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	return content, nil
}

// Not in TestRelease: there its own program would be compiled again, too, which takes minutes.
func TestBuildIsTheSameWhateverTheBuildersSettings(t *testing.T) {
	workspace := filepath.Join(t.TempDir(), "go.work")
	if err := os.WriteFile(workspace, []byte("go 1.26.0\n\ngodebug panicnil=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(kept, []byte("GOAMD64=v3\nGOARM64=v9.0\nGOFLAGS=-tags=elsewhere\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, arch := range []string{"GOARCH=amd64", "GOARCH=arm64"} {
		plain, err := build(t, arch)
		if err != nil {
			t.Fatal(err)
		}
		for _, setting := range []string{"GOAMD64=v3", "GOARM64=v9.0", "GOFLAGS=-tags=elsewhere", "GOFIPS140=latest", "GOWORK=" + workspace, "GOENV=" + kept} {
			t.Run(arch+","+setting, func(t *testing.T) {
				other, err := build(t, arch, setting)
				if err != nil {
					t.Fatal(err)
				}
				if string(plain) != string(other) {
					t.Error("the program differs")
				}
			})
		}
	}
}

func TestBuildRefusesExperiments(t *testing.T) {
	kept := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(kept, []byte("GOEXPERIMENT=fieldtrack\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, setting := range []string{"GOEXPERIMENT=fieldtrack", "GOENV=" + kept} {
		_, err := build(t, setting)
		if err == nil || !strings.Contains(err.Error(), "hack/build: GOEXPERIMENT=fieldtrack") {
			t.Errorf("%s: the error is %v", setting, err)
		}
	}
}

package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestProvenanceHasWhatWasGiven(t *testing.T) {
	sources := filepath.Join(t.TempDir(), "sources.list")
	if err := os.WriteFile(sources, []byte("deb http://snapshot.example bookworm main\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := release{input: input{"v1.2.3", "a.example/b", "https://c.example", "linux/amd64  linux/arm64", sources}, out: t.TempDir()}
	if err := r.readSources(); err != nil {
		t.Fatal(err)
	}
	if err := r.makeProvenance(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(r.out, "provenance.intoto.json"))
	if err != nil {
		t.Fatal(err)
	}
	var s statement
	if err := json.Unmarshal(content, &s); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"VERSION": "v1.2.3", "IMAGE": "a.example/b", "URL": "https://c.example", "PLUGINS": "linux/amd64 linux/arm64",
		"SOURCES": "sha256:" + sum([]byte("deb http://snapshot.example bookworm main\n")),
	}
	if got := s.Predicate.BuildDefinition.ExternalParameters; !maps.Equal(got, want) {
		t.Errorf("it has %v, not %v", got, want)
	}
}

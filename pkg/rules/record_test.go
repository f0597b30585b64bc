package rules

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

func newRecord(t *testing.T) Record {
	t.Helper()
	r, err := NewRecord(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func patternsOf(t *testing.T, texts ...string) []ifpattern.Pattern {
	return policyOf(t, policy.Drop, texts...).Interfaces()
}

// The patterns add up, the backend is the last one.
func TestRecord(t *testing.T) {
	r := newRecord(t)
	if patterns, err := r.Patterns(); err != nil || patterns != nil {
		t.Errorf("before: %v, %v", patterns, err)
	}
	if b, err := r.Backend(); err != nil || b != "" {
		t.Errorf("before: %q, %v", b, err)
	}
	for _, step := range []struct {
		patterns []string
		backend  Backend
		want     []string
	}{
		{[]string{"eni+"}, NFT, []string{"eni+"}},
		{[]string{"eni+"}, NFT, []string{"eni+"}},
		{[]string{"vlan+", "vlan+", "eni+"}, Legacy, []string{"eni+", "vlan+"}},
		{nil, NFT, []string{"eni+", "vlan+"}},
		{[]string{"cali+"}, NFT, []string{"eni+", "vlan+", "cali+"}},
	} {
		if err := r.Remember(patternsOf(t, step.patterns...), step.backend); err != nil {
			t.Fatal(err)
		}
		patterns, err := r.Patterns()
		if err != nil || !slices.Equal(patterns, patternsOf(t, step.want...)) {
			t.Errorf("after %q: %v, %v", step.patterns, patterns, err)
		}
		if b, err := r.Backend(); err != nil || b != step.backend {
			t.Errorf("after %q: %q, %v", step.patterns, b, err)
		}
	}
	files := func() (infos []os.FileInfo) {
		for _, file := range []string{r.patternsFile(), r.backendFile()} {
			info, err := os.Stat(file)
			if err != nil {
				t.Fatal(err)
			}
			infos = append(infos, info)
		}
		return infos
	}
	before := files()
	if err := r.Remember(patternsOf(t, "eni+"), NFT); err != nil {
		t.Fatal(err)
	}
	for i, info := range files() {
		if !os.SameFile(info, before[i]) {
			t.Errorf("%s was written anew with nothing new in it", info.Name())
		}
	}
	for range 2 { // there may be none
		if err := r.Forget(); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "*")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

// What somebody else has written into the record is no pattern, and no backend.
func TestRecordOfSomebodyElse(t *testing.T) {
	r := newRecord(t)
	if err := os.MkdirAll(r.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, text := range map[string]string{
		r.patternsFile(): "eni+\n\n  vlan+  \n+\na b\n-x\neth0", r.backendFile(): "iptables\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if patterns, err := r.Patterns(); err != nil || !slices.Equal(patterns, patternsOf(t, "eni+", "vlan+", "eth0")) {
		t.Errorf("%v, %v", patterns, err)
	}
	for text, want := range map[string]Backend{"nft": NFT, " legacy \n": Legacy, "auto": "", "": "", "nft legacy": ""} {
		if err := os.WriteFile(r.backendFile(), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if b, err := r.Backend(); err != nil || b != want {
			t.Errorf("%q: %q, %v", text, b, err)
		}
	}
}

// Where no file can be, every error is told.
func TestRecordThatFails(t *testing.T) {
	for _, c := range []struct {
		name                                 string
		blocked                              func(Record) string // a folder in the place of a file
		patterns, backend, remember, forgets bool                // which fail
	}{
		{"patterns", Record.patternsFile, true, false, true, true},
		{"backend", Record.backendFile, false, true, true, true},
		{"the new patterns", func(r Record) string { return r.patternsFile() + ".new" }, false, false, true, false},
		{"the new backend", func(r Record) string { return r.backendFile() + ".new" }, false, false, true, false},
	} {
		r := newRecord(t)
		if err := os.MkdirAll(filepath.Join(c.blocked(r), "x"), 0o755); err != nil {
			t.Fatal(err)
		}
		_, patterns := r.Patterns()
		_, backend := r.Backend()
		remember := r.Remember(patternsOf(t, "eni+"), NFT)
		forget := r.Forget()
		for what, got := range map[string][2]bool{
			"reading the patterns": {patterns != nil, c.patterns}, "reading the backend": {backend != nil, c.backend},
			"remembering": {remember != nil, c.remember}, "forgetting": {forget != nil, c.forgets},
		} {
			if got[0] != got[1] {
				t.Errorf("%s blocked: %s fails %t", c.name, what, got[0])
			}
		}
	}
	r := newRecord(t)
	if err := os.WriteFile(r.dir, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if r.Remember(patternsOf(t, "eni+"), NFT) == nil || r.MarkRunning() == nil || r.MarkCleaning() == nil {
		t.Error("a file in the place of the record's folder is no error")
	}
}

// Agents and a cleanup keep out of each other's way; agents may be several.
func TestLocks(t *testing.T) {
	r := newRecord(t)
	if err := r.MarkCleaning(); err != nil {
		t.Errorf("a cleanup where no agent has been: %v", err)
	}
	if _, err := os.Stat(r.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it has left something: %v", err)
	}
	for range 2 {
		if err := r.MarkRunning(); err != nil {
			t.Errorf("an agent: %v", err)
		}
	}
	if err := r.MarkCleaning(); !errors.Is(err, ErrAgentRuns) {
		t.Errorf("a cleanup beside an agent: %v", err)
	}
	other := newRecord(t)
	if err := os.MkdirAll(other.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := other.MarkCleaning(); err != nil {
		t.Errorf("a cleanup alone: %v", err)
	}
	if err := other.MarkRunning(); !errors.Is(err, ErrCleanupRuns) {
		t.Errorf("an agent beside a cleanup: %v", err)
	}
}

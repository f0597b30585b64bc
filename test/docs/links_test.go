// Package docs holds the project's documents to each other and to the tests: what one links to is there, and so is each test that
// it names. Links to elsewhere are not followed.
package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/imds-guard/imds-guard/internal/reference"
)

// home is how documents and annotations that are read elsewhere name a file of this repository.
const home = "https://github.com/imds-guard/imds-guard/blob/main/"

var (
	fence   = regexp.MustCompile("^ *(```|~~~)")
	code    = regexp.MustCompile("(`+)[^`]+(`+)")
	heading = regexp.MustCompile(`^#{1,6} +(.*?) *#* *$`)
	// An inline link or image, or the definition of a link.
	link     = regexp.MustCompile(`\]\(<?([^)>\s]+)>?(?: "[^"]*")?\)|^\[[^\]]+\]: +<?([^>\s]+)`)
	linkText = regexp.MustCompile(`!?\[([^\]]*)\]\([^)]*\)`)

	testFunction = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	testName     = regexp.MustCompile(`\bTest[A-Z]\w+`)
)

// document is what matters of one: the anchors of its headings, and where it links to.
type document struct {
	anchors []string
	links   []string
}

func read(text string) document {
	var d document
	var fenced bool
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if fence.MatchString(line) {
			fenced = !fenced
		}
		if fenced {
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			d.anchors = append(d.anchors, free(anchor(m[1]), d.anchors))
		}
		for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(line, ""), -1) {
			d.links = append(d.links, m[1]+m[2])
		}
	}
	return d
}

// anchor is what GitHub makes of a heading.
func anchor(heading string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || unicode.In(r, unicode.L, unicode.M, unicode.Nd, unicode.Pc):
			return unicode.ToLower(r)
		}
		return -1
	}, linkText.ReplaceAllString(heading, "$1"))
}

// free returns an anchor that no earlier heading has, numbered as GitHub does.
func free(anchor string, taken []string) string {
	for i, try := 1, anchor; ; i++ {
		if !slices.Contains(taken, try) {
			return try
		}
		try = fmt.Sprintf("%s-%d", anchor, i)
	}
}

// texts returns the files below a directory whose name ends in a suffix, without what is built.
func texts(t *testing.T, root, suffix string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() && path != root && (strings.HasPrefix(name, ".") || name == "bin" || name == "dist") {
			return filepath.SkipDir
		}
		if entry.IsDir() || !strings.HasSuffix(name, suffix) {
			return nil
		}
		text, err := os.ReadFile(path)
		found[path] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// broken returns the number of links below a directory that stay in it, and those that lead nowhere.
func broken(t *testing.T, root string) (links int, problems []string) {
	t.Helper()
	documents := map[string]document{}
	for path, text := range texts(t, root, ".md") {
		documents[path] = read(text)
	}
	for from, d := range documents {
		for _, to := range d.links {
			file, fragment, anchored := strings.Cut(to, "#")
			target := filepath.Join(filepath.Dir(from), file)
			if inside, ok := strings.CutPrefix(file, home); ok {
				target = filepath.Join(root, inside)
			} else if strings.Contains(file, ":") {
				continue
			} else if file == "" {
				target = from
			}
			links++
			name, _ := filepath.Rel(root, from)
			if _, err := os.Stat(target); err != nil {
				problems = append(problems, fmt.Sprintf("%s: %s: no such file", name, to))
			} else if other, ok := documents[target]; ok && anchored && !slices.Contains(other.anchors, fragment) {
				problems = append(problems, fmt.Sprintf("%s: %s: no such heading", name, to))
			}
		}
	}
	slices.Sort(problems)
	return links, problems
}

func TestLinks(t *testing.T) {
	links, problems := broken(t, reference.Root)
	if links == 0 {
		t.Error("there are no links")
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

// A document that says "shown by TestX" is worth nothing once there is no such test.
func TestNamedTests(t *testing.T) {
	var tests []string
	for _, text := range texts(t, reference.Root, "_test.go") {
		for _, m := range testFunction.FindAllStringSubmatch(text, -1) {
			tests = append(tests, m[1])
		}
	}
	for path, text := range texts(t, reference.Root, ".md") {
		for _, name := range testName.FindAllString(text, -1) {
			// The beginning of a name is enough for `go test -run`.
			if !slices.ContainsFunc(tests, func(test string) bool { return strings.HasPrefix(test, name) }) {
				t.Errorf("%s names %s, which is no test", path, name)
			}
		}
	}
}

func TestBrokenLinks(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"README.md": "# One\n## Two\n## Two\n[a](docs/a.md) [b](docs/a.md#here) [c](#two-1) [d](docs) [e](https://example.com/x.md#no)\n" +
			"[f](#two-2) [g](docs/none.md) `[h](none.md)`\n```\n# Not one\n[i](none.md)\n```\n[j](#not-one) ![k](none.png)\n",
		"docs/a.md": "# Here\n[up](../README.md#one) [gone](../README.md#three) [home](" + home + "README.md#four)\n[k]: b.md\n[a][k]\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	links, problems := broken(t, dir)
	want := []string{
		"README.md: #not-one: no such heading",
		"README.md: #two-2: no such heading",
		"README.md: docs/none.md: no such file",
		"README.md: none.png: no such file",
		"docs/a.md: ../README.md#three: no such heading",
		"docs/a.md: " + home + "README.md#four: no such heading",
		"docs/a.md: b.md: no such file",
	}
	if slices.Sort(want); links != 12 || !slices.Equal(problems, want) {
		t.Errorf("of %d links these are broken:\n%s", links, strings.Join(problems, "\n"))
	}
}

func TestAnchors(t *testing.T) {
	for heading, want := range map[string]string{
		"Past FORWARD":                     "past-forward",
		"`--interface` for your CNI":       "--interface-for-your-cni",
		"Fargate, hybrid nodes, Windows":   "fargate-hybrid-nodes-windows",
		"ImdsGuardDegraded":                "imdsguarddegraded",
		"The node's condition":             "the-nodes-condition",
		"NetworkPolicy with the VPC CNI":   "networkpolicy-with-the-vpc-cni",
		"See [the chart](chart/README.md)": "see-the-chart",
		"imds_guard_up — a metric":         "imds_guard_up--a-metric",
	} {
		if got := anchor(heading); got != want {
			t.Errorf("%q: %q, want %q", heading, got, want)
		}
	}
}

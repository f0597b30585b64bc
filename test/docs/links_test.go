// Links between the documents, and the runbooks of the alerts.

package docs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/imds-guard/imds-guard/internal/reference"
)

const alertsFile = "deploy/chart/imds-guard/files/alerts.yaml"

var (
	links     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	ownPages  = regexp.MustCompile(`https://github\.com/imds-guard/imds-guard/blob/main/([\w./#-]+)`)
	linkTexts = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)
	unslugged = regexp.MustCompile(`[^\p{L}\p{N}_\- ]`)
)

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// anchors are those that GitHub makes of a document's headings.
func anchors(text string) map[string]bool {
	found, code := map[string]bool{}, false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			code = !code
		}
		title := strings.TrimLeft(line, "#")
		if code || title == line {
			continue
		}
		title = linkTexts.ReplaceAllString(strings.TrimSpace(title), "$1")
		slug := strings.ReplaceAll(unslugged.ReplaceAllString(strings.ToLower(title), ""), " ", "-")
		again := slug
		for i := 1; found[again]; i++ {
			again = fmt.Sprintf("%s-%d", slug, i)
		}
		found[again] = true
	}
	return found
}

// TestLinks: every link from one of the project's files to another leads to a file, and to a heading there.
func TestLinks(t *testing.T) {
	t.Parallel()
	root := reference.Root()
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == ".git" || d.Name() == "bin" || d.Name() == "dist") {
			return fs.SkipDir
		}
		if d.IsDir() {
			return nil
		}
		pattern, base := ownPages, root
		switch filepath.Ext(file) {
		case ".md":
			pattern, base = links, filepath.Dir(file)
		case ".yaml", ".json", ".txt", ".tpl", ".go":
		default:
			return nil
		}
		for _, m := range pattern.FindAllStringSubmatch(read(t, file), -1) {
			path, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(path, ":") { // another site
				continue
			}
			to := filepath.Join(base, path)
			if path == "" {
				to = file
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s: %s: there is no such file", file, m[1])
			} else if anchor != "" && !anchors(read(t, to))[anchor] {
				t.Errorf("%s: %s: there is no such heading", file, m[1])
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestRunbooks: each alert has a page that begins with its name, and each page with such a name is an alert's.
func TestRunbooks(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert string `json:"alert"`
			} `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(reference.Root(), alertsFile))), &rules); err != nil {
		t.Fatal(err)
	}
	alerts := map[string]bool{}
	list := read(t, filepath.Join(reference.Root(), "docs/operations.md"))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts[r.Alert] = true
			page := read(t, filepath.Join(reference.Root(), "docs/runbooks", r.Alert+".md"))
			if !strings.HasPrefix(page, "# "+r.Alert+"\n") {
				t.Errorf("the page of %s does not begin with its name", r.Alert)
			}
			if !strings.Contains(list, "| ["+r.Alert+"](") {
				t.Errorf("docs/operations.md has no row for %s", r.Alert)
			}
		}
	}
	pages, err := filepath.Glob(filepath.Join(reference.Root(), "docs/runbooks/ImdsGuard*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if name := strings.TrimSuffix(filepath.Base(page), ".md"); !alerts[name] {
			t.Errorf("%s: there is no such alert", page)
		}
	}
}

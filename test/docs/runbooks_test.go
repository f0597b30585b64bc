// The runbooks, held against the alerts.

package docs

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/imds-guard/imds-guard/internal/reference"
)

const alertsFile = "deploy/chart/imds-guard/files/alerts.yaml"

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
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
	if err := yaml.Unmarshal([]byte(readFile(t, filepath.Join(reference.Root, alertsFile))), &rules); err != nil {
		t.Fatal(err)
	}
	alerts := map[string]bool{}
	list := readFile(t, filepath.Join(reference.Root, "docs/operations.md"))
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			alerts[r.Alert] = true
			page := readFile(t, filepath.Join(reference.Root, "docs/runbooks", r.Alert+".md"))
			if !strings.HasPrefix(page, "# "+r.Alert+"\n") {
				t.Errorf("the page of %s does not begin with its name", r.Alert)
			}
			if !strings.Contains(list, "| ["+r.Alert+"](") {
				t.Errorf("docs/operations.md has no row for %s", r.Alert)
			}
		}
	}
	pages, err := filepath.Glob(filepath.Join(reference.Root, "docs/runbooks/ImdsGuard*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		if name := strings.TrimSuffix(filepath.Base(page), ".md"); !alerts[name] {
			t.Errorf("%s: there is no such alert", page)
		}
	}
}

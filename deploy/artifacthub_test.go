package deploy_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

// What Artifact Hub reads is YAML in a text, which nothing else would find broken.
func TestArtifactHub(t *testing.T) {
	text, err := os.ReadFile(chart + "/Chart.yaml")
	if err != nil {
		t.Fatal(err)
	}
	annotations, _ := at(parseYAML(t, string(text)), "annotations").(map[string]any)
	if annotations["artifacthub.io/category"] != "security" || annotations["artifacthub.io/license"] != "Apache-2.0" {
		t.Errorf("category and license: %v", annotations)
	}
	var links []struct{ Name, URL string }
	if err := yaml.UnmarshalStrict([]byte(fmt.Sprint(annotations["artifacthub.io/links"])), &links); err != nil || len(links) == 0 {
		t.Fatalf("the links: %v, %v", links, err)
	}
	for _, l := range links {
		if file, ours := strings.CutPrefix(l.URL, "https://github.com/imds-guard/imds-guard/blob/main/"); ours {
			if _, err := os.Stat("../" + file); err != nil {
				t.Errorf("the link %s: %v", l.Name, err)
			}
		}
	}
}

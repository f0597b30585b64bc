// Command values writes the table of a chart's values into its README.md, from the comments in values.yaml: values CHART.
//
// The comments are as helm-docs wants them: "# -- " begins what is said of the value below, and following lines go on with it. A
// list or a map that has such a comment is one row; of another map each value has a row of its own.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"go.yaml.in/yaml/v3"
	yamljson "sigs.k8s.io/yaml"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: values CHART")
		os.Exit(2)
	}
	readme := filepath.Join(os.Args[1], "README.md")
	text, err := update(os.Args[1])
	if err == nil {
		err = os.WriteFile(readme, []byte(text), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "values:", err)
		os.Exit(1)
	}
}

// The table is between these two lines.
const (
	begin = "<!-- The values: written by `make manifests` from values.yaml. -->\n"
	end   = "<!-- The end of the values. -->\n"
)

// update returns the chart's README.md with the table that values.yaml makes.
func update(chart string) (string, error) {
	values, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		return "", err
	}
	readme, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		return "", err
	}
	rows, err := table(values)
	if err != nil {
		return "", fmt.Errorf("values.yaml: %w", err)
	}
	before, rest, found := strings.Cut(string(readme), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return "", fmt.Errorf("README.md lacks the lines %q and %q", begin, end)
	}
	return before + begin + rows + end + after, nil
}

// table makes the table of a values.yaml.
func table(values []byte) (string, error) {
	var document yaml.Node
	if err := yaml.Unmarshal(values, &document); err != nil {
		return "", err
	}
	var text strings.Builder
	text.WriteString("| value | default | meaning |\n|---|---|---|\n")
	err := rows(&text, "", document.Content[0])
	return text.String(), err
}

func rows(text *strings.Builder, prefix string, values *yaml.Node) (err error) {
	for i := 0; i < len(values.Content); i += 2 {
		key, value := values.Content[i], values.Content[i+1]
		path := prefix + key.Value
		meaning := description(key.HeadComment)
		if meaning == "" && value.Kind == yaml.MappingNode && len(value.Content) > 0 {
			err = errors.Join(err, rows(text, path+".", value))
			continue
		}
		if meaning == "" {
			err = errors.Join(err, fmt.Errorf("%s: say what it is for, in a comment above it that begins with \"# -- \"", path))
		}
		shown, e := oneLine(value)
		err = errors.Join(err, e)
		fmt.Fprintf(text, "| `%s` | `%s` | %s |\n", path, shown, strings.ReplaceAll(meaning, "|", `\|`))
	}
	return err
}

// description is what a comment says behind the last "--".
func description(comment string) string {
	_, said, _ := cutLast("\n"+comment, "\n# -- ")
	return strings.ReplaceAll(said, "\n# ", " ")
}

func cutLast(s, separator string) (before, after string, found bool) {
	if i := strings.LastIndex(s, separator); i >= 0 {
		return s[:i], s[i+len(separator):], true
	}
	return s, "", false
}

// oneLine is a value as JSON, which is YAML as well.
func oneLine(value *yaml.Node) (string, error) {
	text, err := yaml.Marshal(value)
	if err != nil {
		return "", err
	}
	shown, err := yamljson.YAMLToJSON(text)
	return string(shown), err
}

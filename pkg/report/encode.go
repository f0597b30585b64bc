// Reports as JSON and YAML. Both may be viewed on a terminal, and contain text chosen by pods.

package report

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"sigs.k8s.io/yaml"
)

// CheckOutput validates the flag --output.
func CheckOutput(output string) error {
	switch output {
	case "text", "json", "yaml":
		return nil
	}
	return fmt.Errorf("--output: %q is not valid; use text, json or yaml", output)
}

// Write writes a value in the format of --output; text does so for people.
func Write(w io.Writer, output string, value any, text func(io.Writer) error) error {
	switch output {
	case "json":
		return WriteJSON(w, value)
	case "yaml":
		return WriteYAML(w, value)
	}
	return text(w)
}

// WriteJSON writes a Node, or a value that contains Nodes. Characters that json leaves alone, but a terminal might interpret,
// become JSON escapes.
func WriteJSON(w io.Writer, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(escape(text, strconv.IsPrint), '\n'))
	return err
}

// WriteYAML writes the same as YAML. The library parses JSON as if it were YAML: it rejects control characters that JSON
// allows, and doesn't know JSON's surrogate pairs.
func WriteYAML(w io.Writer, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	text, err = yaml.JSONToYAML(escape(text, func(r rune) bool { return r > 0xffff || strconv.IsPrint(r) }))
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// escape replaces all runes of a JSON text that are not to be kept by escapes. They can only be inside strings.
func escape(text []byte, keep func(rune) bool) []byte {
	var out []byte
	for _, r := range string(text) {
		if r == '\n' || keep(r) {
			out = utf8.AppendRune(out, r)
			continue
		}
		for _, half := range utf16.Encode([]rune{r}) {
			out = fmt.Appendf(out, `\u%04x`, half)
		}
	}
	return out
}

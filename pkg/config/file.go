// The YAML file: its keys are the flags' names, and nothing else is allowed.

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// readFile sets every flag that the file names and the command line does not. A value is taken literally: `off` stays that word
// instead of becoming a boolean, as it would in YAML 1.1.
func (o *Options) readFile() error {
	text, err := os.ReadFile(o.file)
	if err != nil {
		return fmt.Errorf("--config: reading the file: %w", err)
	}
	documents := yaml.NewDecoder(bytes.NewReader(text))
	var document, second yaml.Node
	switch err := documents.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil // an empty file
	case err != nil:
		return fmt.Errorf("--config: parsing %s: %w", o.file, err)
	}
	if !errors.Is(documents.Decode(&second), io.EOF) {
		return fmt.Errorf("--config: parsing %s: it has more than one document; keep one", o.file)
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		return fmt.Errorf("--config: %s:%d: write settings as `name: value`", o.file, root.Line)
	}
	given := map[string]bool{}
	var errs []error
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		if err := o.setField(given, key, value); err != nil {
			errs = append(errs, fmt.Errorf("--config: %s:%d: %w", o.file, key.Line, err))
		}
	}
	return errors.Join(errs...)
}

func (o *Options) setField(given map[string]bool, key, value *yaml.Node) error {
	flag := o.flags.Lookup(key.Value)
	if flag == nil {
		var names []string
		o.flags.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		return fmt.Errorf("%q is not a setting; use %s", key.Value, alternatives(names))
	}
	if given[flag.Name] {
		return fmt.Errorf("%s is set twice; keep one", flag.Name)
	}
	given[flag.Name] = true
	text, err := fieldText(value)
	if err != nil {
		return fmt.Errorf("%s: %w", flag.Name, err)
	}
	if flag.Changed {
		return nil // the command line wins
	}
	if err := o.flags.Set(flag.Name, text); err != nil {
		return fmt.Errorf("%s: %w", flag.Name, err)
	}
	return nil
}

// fieldText returns a value as it would be on the command line: a word, or a list joined by commas.
func fieldText(value *yaml.Node) (string, error) {
	switch value.Kind {
	case yaml.ScalarNode:
		return value.Value, nil
	case yaml.SequenceNode:
		var items []string
		for _, item := range value.Content {
			if item.Kind != yaml.ScalarNode {
				return "", errors.New("write a value, or a list of values")
			}
			items = append(items, item.Value)
		}
		return strings.Join(items, ","), nil
	}
	return "", errors.New("write a value, or a list of values")
}

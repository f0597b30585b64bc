// Package reference reads the tables of docs/reference, for the tests that hold them against the code.
package reference

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Root is the directory of the project, as seen from the tests that use this: all are in packages two levels below it. Where the
// source file is, as the compiler recorded it, would tell nothing in a build with -trimpath.
const Root = "../.."

// Table returns the cells of a table's rows: of every table of docs/reference/file that begins with a column of that name and is
// under that heading. An empty heading is any.
func Table(t *testing.T, file, heading, column string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(Root, "docs/reference", file))
	if err != nil {
		t.Fatal(err)
	}
	under, in := heading == "", false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if title := strings.TrimLeft(line, "#"); title != line && heading != "" {
			under = strings.TrimSpace(title) == heading
		}
		row, isRow := strings.CutPrefix(line, "| ")
		cells := strings.Split(strings.TrimSuffix(row, "|"), " | ")
		for i := range cells {
			cells[i] = strings.Trim(cells[i], " |")
		}
		switch {
		case !isRow:
			in = in && line != ""
		case under && cells[0] == column:
			in = true
		case in:
			rows = append(rows, cells)
		}
	}
	if len(rows) == 0 {
		t.Fatalf("docs/reference/%s has no table of a %s under %q", file, column, heading)
	}
	return rows
}

// A name that has a backquote in it is between two of them each, by Markdown's rule.
var code = regexp.MustCompile("`` (.+?) ``|`([^`]+)`")

// Names returns what a cell has in code style.
func Names(cell string) (names []string) {
	for _, m := range code.FindAllStringSubmatch(cell, -1) {
		names = append(names, m[1]+m[2])
	}
	return names
}

// First returns the names in the first cells of a table's rows.
func First(rows [][]string) (names []string) {
	for _, cells := range rows {
		names = append(names, Names(cells[0])...)
	}
	return names
}

// Same says what only the code has, or only the document.
func Same(t *testing.T, file string, code, document []string) {
	t.Helper()
	for _, name := range code {
		if !slices.Contains(document, name) {
			t.Errorf("the code has %q, and docs/reference/%s does not", name, file)
		}
	}
	for i, name := range document {
		if !slices.Contains(code, name) {
			t.Errorf("docs/reference/%s has %q, and the code does not", file, name)
		}
		if slices.Contains(document[:i], name) {
			t.Errorf("docs/reference/%s has %q twice", file, name)
		}
	}
}

// JSONFields returns the fields of a type as JSON has them; one that is inside another has both names, with a dot.
func JSONFields(of reflect.Type) []string { return jsonFields(of, "") }

func jsonFields(of reflect.Type, prefix string) (names []string) {
	for of.Kind() == reflect.Pointer || of.Kind() == reflect.Slice {
		of = of.Elem()
	}
	if of.Kind() != reflect.Struct {
		return nil
	}
	for field := range of.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		switch {
		case field.Anonymous && name == "":
			names = append(names, jsonFields(field.Type, prefix)...)
		case name != "":
			names = append(append(names, prefix+name), jsonFields(field.Type, prefix+name+".")...)
		}
	}
	return names
}

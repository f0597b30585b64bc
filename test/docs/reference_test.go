// The reference, held against the code.

package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/reference"
)

// parseDir parses the files of a directory that are no tests.
func parseDir(t *testing.T, dir string) (files []*ast.File) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

// constants returns the values of a package's constants with such names.
func constants(t *testing.T, pkg, prefix string) (values []string) {
	t.Helper()
	for _, f := range parseDir(t, filepath.Join(reference.Root, pkg)) {
		for _, d := range f.Decls {
			group, ok := d.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				for i, name := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(name.Name, prefix) {
						values = append(values, literals(spec.(*ast.ValueSpec).Values[i], nil)...)
					}
				}
			}
		}
	}
	if len(values) == 0 {
		t.Fatalf("%s has no constant %s…", pkg, prefix)
	}
	return values
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	const file = "commands.md"
	reference.Same(t, file, constants(t, "internal/command", ""), reference.First(reference.Table(t, file, "Exit codes", "code")))
}

func TestConditionAndEvents(t *testing.T) {
	t.Parallel()
	const file = "condition-and-events.md"
	var conditions []string
	for _, cells := range reference.Table(t, file, "The condition IMDSProtected", "status") {
		conditions = append(conditions, reference.Names(cells[1])...)
	}
	reference.Same(t, file, constants(t, "pkg/node", "Reason"), conditions)
	reference.Same(t, file, constants(t, "pkg/node", "Event"), reference.First(reference.Table(t, file, "Events", "reason")))
}

// TestLogMessages: the table has every message at info and above with its level, and no other.
func TestLogMessages(t *testing.T) {
	t.Parallel()
	var documented, logged []string
	for _, cells := range reference.Table(t, "logs.md", "", "level") {
		for _, message := range reference.Names(cells[1]) {
			documented = append(documented, cells[0]+" "+message)
		}
	}
	root := filepath.Join(reference.Root, "pkg")
	err := filepath.WalkDir(root, func(dir string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		p := source{t: t, wrappers: map[string]int{}, files: parseDir(t, dir)}
		logged = append(logged, p.messages()...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	reference.Same(t, "logs.md", logged, documented)
}

// literals returns what an expression of string constants can be, by what each variable is said to be. It is nothing if that is not
// known.
func literals(e ast.Expr, variables map[string][]string) (values []string) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return []string{text}
		}
		return []string{e.Value}
	case *ast.Ident:
		return variables[e.Name]
	case *ast.SelectorExpr:
		return variables[e.Sel.Name]
	case *ast.BinaryExpr:
		for _, x := range literals(e.X, variables) {
			for _, y := range literals(e.Y, variables) {
				values = append(values, x+y)
			}
		}
	}
	return values
}

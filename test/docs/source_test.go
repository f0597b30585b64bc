// What a package of Go logs, read from its source.

package docs

import (
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

var levels = map[string]string{"Info": "info", "Warn": "warn", "Error": "error"}

// source is a package. wrappers are its functions that log what they are given, with the place of that parameter.
type source struct {
	t        *testing.T
	files    []*ast.File
	wrappers map[string]int
}

// messages returns each message behind its level.
func (s source) messages() []string {
	found := map[string]bool{}
	fields := map[string][]string{}
	for _, f := range s.files {
		s.assignments(f, fields, true)
	}
	// Twice, since a wrapper may be called before it is seen.
	for range 2 {
		for _, f := range s.files {
			for _, d := range f.Decls {
				if function, ok := d.(*ast.FuncDecl); ok && function.Body != nil {
					s.function(function, fields, found)
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// assignments notes which strings variables, constants and the fields of literals get.
func (s source) assignments(in ast.Node, to map[string][]string, fieldsOnly bool) {
	note := func(name string, value ast.Expr) { to[name] = append(to[name], literals(value, to)...) }
	ast.Inspect(in, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok {
				note(key.Name, n.Value)
			}
		case *ast.AssignStmt:
			for i, left := range n.Lhs {
				if name, ok := left.(*ast.Ident); ok && !fieldsOnly && len(n.Lhs) == len(n.Rhs) {
					note(name.Name, n.Rhs[i])
				}
			}
		case *ast.ValueSpec:
			for i, name := range n.Names {
				if !fieldsOnly && i < len(n.Values) {
					note(name.Name, n.Values[i])
				}
			}
		}
		return true
	})
}

func (s source) function(f *ast.FuncDecl, fields map[string][]string, found map[string]bool) {
	variables := maps.Clone(fields)
	s.assignments(f, variables, false)
	ast.Inspect(f, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		level, message := s.logged(call)
		if message == nil {
			return true
		}
		if place := parameter(f, message); place >= 0 {
			s.wrappers[f.Name.Name] = place
			return true
		}
		texts := literals(message, variables)
		if len(texts) == 0 {
			s.t.Errorf("%s logs a message that this test can't read; log a constant", f.Name.Name)
		}
		for _, text := range texts {
			found[level+" "+text] = true
		}
		return true
	})
}

// logged returns a call's level and message, if it logs at info or above. A wrapper logs at info.
func (s source) logged(call *ast.CallExpr) (level string, message ast.Expr) {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return "", nil
	}
	if place, ok := s.wrappers[method.Sel.Name]; ok && len(call.Args) > place {
		return "info", call.Args[place]
	}
	if name := last(method.X); name != "log" && name != "Log" {
		return "", nil
	}
	if level := levels[method.Sel.Name]; level != "" && len(call.Args) > 0 {
		return level, call.Args[0]
	}
	if method.Sel.Name != "Log" || len(call.Args) < 3 {
		return "", nil
	}
	ast.Inspect(call.Args[1], func(n ast.Node) bool {
		if name, ok := n.(*ast.Ident); ok && strings.HasPrefix(name.Name, "Level") {
			level = levels[strings.TrimPrefix(name.Name, "Level")]
		}
		return true
	})
	return level, call.Args[2]
}

func last(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.Ident:
		return e.Name
	case *ast.SelectorExpr:
		return e.Sel.Name
	}
	return ""
}

// parameter returns the place of a parameter; -1 if the expression is none.
func parameter(f *ast.FuncDecl, e ast.Expr) int {
	place := 0
	for _, p := range f.Type.Params.List {
		for _, name := range p.Names {
			if ident, ok := e.(*ast.Ident); ok && ident.Name == name.Name {
				return place
			}
			place++
		}
	}
	return -1
}

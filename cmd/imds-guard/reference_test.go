// The reference, held against the commands as they are.

package main

import (
	"reflect"
	"testing"

	"github.com/imds-guard/imds-guard/internal/reference"
	"github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/report"
)

func TestReferenceCommands(t *testing.T) {
	t.Parallel()
	reference.Commands(t, newRoot(), "Commands")
}

func TestReferenceFlags(t *testing.T) {
	t.Parallel()
	const settings = "run, check, rules and cleanup"
	for name, headings := range map[string][]string{
		"run": {settings}, "check": {settings, "check only"}, "rules": {settings}, "cleanup": {settings}, "report": {"report"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd, _, err := newRoot().Find([]string{name})
			if err != nil {
				t.Fatal(err)
			}
			reference.Flags(t, cmd, headings...)
		})
	}
}

func TestReferenceJSON(t *testing.T) {
	t.Parallel()
	reference.Same(t, "check.md", reference.JSONFields(reflect.TypeFor[agent.Check]()),
		reference.First(reference.Table(t, "check.md", "JSON", "field")))
	fields := reference.JSONFields(reflect.TypeFor[report.Node]())
	reference.Same(t, "report.md", fields, reference.First(reference.Table(t, "report.md", "JSON and YAML", "field")))
}

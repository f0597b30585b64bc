// The reference, held against the plugin's commands as they are.

package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/imds-guard/imds-guard/internal/reference"
)

// without is a command as it is without kubectl's own flags for the cluster.
func without(t *testing.T, name string) *cobra.Command {
	t.Helper()
	cmd, _, err := newRoot().Find([]string{name})
	if err != nil {
		t.Fatal(err)
	}
	own := &cobra.Command{}
	own.Flags().AddFlagSet(cmd.LocalNonPersistentFlags())
	cmd.InheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Name == "namespace" {
			own.Flags().AddFlag(f)
		}
	})
	return own
}

func TestReferenceFlags(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"report", "status"} {
		reference.Flags(t, without(t, name), "kubectl imds-guard report and status")
	}
}

func TestReferenceCommands(t *testing.T) {
	t.Parallel()
	reference.Commands(t, newRoot(), "The kubectl plugin")
}

func TestReferenceJSON(t *testing.T) {
	t.Parallel()
	var fields []string
	for _, name := range reference.JSONFields(reflect.TypeFor[document]()) {
		// What is inside a node and a workload is in the table of the agent's report.
		if !strings.HasPrefix(name, "nodes.") && (!strings.HasPrefix(name, "workloads.") || name == "workloads.advice") {
			fields = append(fields, name)
		}
	}
	const file = "report.md"
	reference.Same(t, file, fields, reference.First(reference.Table(t, file, "The plugin's JSON and YAML", "field")))
}

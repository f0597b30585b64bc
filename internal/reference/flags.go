// Flags, as the reference has them.

package reference

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

const commandsFile = "commands.md"

// Flags holds the flags of a command and their defaults against the tables under these headings. A flag without a default is
// documented as "none", or as "detected".
func Flags(t *testing.T, cmd *cobra.Command, headings ...string) {
	t.Helper()
	var code, document []string
	cmd.InitDefaultHelpFlag()
	cmd.Flags().AddFlagSet(cmd.InheritedFlags())
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			code = append(code, flag(f.Shorthand, f.Name, strings.Trim(f.DefValue, "[]")))
		}
	})
	for _, heading := range headings {
		for _, cells := range Table(t, commandsFile, heading, "flag") {
			names := Names(cells[0])
			slices.Sort(names) // "--" is before "-o"
			short := ""
			if len(names) == 2 {
				short = strings.TrimLeft(names[1], "-")
			}
			value := strings.Trim(cells[1], "`")
			if value == "none" || value == "detected" {
				value = ""
			}
			document = append(document, flag(short, strings.TrimLeft(names[0], "-"), value))
		}
	}
	Same(t, commandsFile, code, document)
}

func flag(short, name, value string) string { return fmt.Sprintf("-%s --%s=%s", short, name, value) }

// Commands holds the commands of a program against the table under a heading.
func Commands(t *testing.T, root *cobra.Command, heading string) {
	t.Helper()
	var code []string
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() {
			code = append(code, root.DisplayName()+" "+cmd.Name())
		}
	}
	Same(t, commandsFile, code, First(Table(t, commandsFile, heading, "command")))
}

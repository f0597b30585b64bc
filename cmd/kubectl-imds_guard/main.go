// Command kubectl-imds_guard is the kubectl plugin `kubectl imds-guard`: it asks the agents on all nodes and merges their
// answers. This file only parses and wires.
package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/report"
)

// Set by the linker (-X main.version=…).
var (
	version = "dev"
	commit  = "unknown"
)

func main() {
	ctx, _ := command.Interruptible()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs the program. Errors are made printable, since they may come from a server or a node and go to a terminal.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	return command.Run(ctx, newRoot(), args, stdout, stderr, report.Printable)
}

// complain prints an error that does not end the program.
func complain(cmd *cobra.Command, err error) {
	command.Complain(cmd.ErrOrStderr(), cmd.Root(), err, report.Printable)
}

func newRoot() *cobra.Command {
	root := command.Root("kubectl-imds_guard", "Shows who asks for the EC2 instance metadata service, on all nodes of a cluster",
		"Asks the imds-guard agents on all nodes, by running `imds-guard report` in their pods, and merges their answers.\n"+
			"You need permission to list pods and to get and create pods/exec in the agents' namespace; to list nodes, so that\n"+
			"those without an agent are noticed; and to get nodes, for --node.", "report")
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl imds-guard"}
	c := newCluster()
	c.addTo(root.PersistentFlags())
	root.AddCommand(newReport(c), newStatus(c),
		command.Version(version, commit, "Print the plugin's version, commit, Go version and platform; `status` shows those of the agents"))
	return root
}

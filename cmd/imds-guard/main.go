// Command imds-guard keeps pods away from the EC2 instance metadata service. This package only parses and wires.
package main

import (
	"os"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/internal/command"
)

// Set by the linker (-X main.version=…).
var (
	version = "dev"
	commit  = "unknown"
)

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := command.Interruptible()
	defer stop()
	return command.Run(ctx, newRoot(), os.Args[1:], os.Stdout, os.Stderr, nil)
}

func newRoot() *cobra.Command {
	root := command.Root("imds-guard", "Keeps pods away from the EC2 instance metadata service (IMDS)",
		"imds-guard keeps pods away from the EC2 instance metadata service (IMDS), with a rule at the top of the node's\n"+
			"FORWARD chain, a route into a sink, and BPF programs that refuse the pods' sockets. It keeps all three in place,\n"+
			"reports what it reads back from the kernel, and shows who asks for IMDS.", "run")
	root.AddCommand(newRun(), newCheck(), newRules(), newCleanup(), newReport(), newAsk(),
		command.Version(version, commit, "Print version, commit, Go version and platform"), newPause())
	return root
}

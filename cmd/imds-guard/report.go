// imds-guard report: who asks on this node.

package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/report"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func newReport() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Show who asks for the metadata service on this node: how often, when last, what for, and what to do about it",
		Long: "Asks the agent on this node; needs root. Exit code 0: success; 1: no agent answers, or you are not root; 2: wrong usage.\n" +
			"`kubectl imds-guard report` does the same for all nodes.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := report.CheckOutput(output); err != nil {
				return err
			}
			record, err := rules.NewRecord(rules.RecordDir)
			if err != nil {
				return command.Fail(err)
			}
			n, err := agent.Ask(cmd.Context(), record.Socket())
			if err != nil {
				return command.Fail(err)
			}
			nodes := []report.Node{n}
			text := func(w io.Writer) error { return report.WriteText(w, nodes, report.Merge(nodes)) }
			if err := report.Write(cmd.OutOrStdout(), output, n, text); err != nil {
				return command.Fail(err)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json or yaml")
	return cmd
}

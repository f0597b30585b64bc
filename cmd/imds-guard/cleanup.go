// imds-guard cleanup: the only thing that removes rules.

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func newCleanup() *cobra.Command {
	options := config.NewOptions()
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Removes everything that imds-guard ever installed here, and nothing else; stop the agent first",
		Long: "Removes from both backends every rule that imds-guard writes for the interface patterns given, and for those\n" +
			"that were ever in use on this node since it booted (" + rules.RecordDir + "). Twice is fine.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := options.Load()
			if err != nil {
				return err
			}
			if err := requireNetAdmin("removing rules"); err != nil {
				return err
			}
			if why := agent.OutsideNode(); why != "" {
				return failed(errors.New("nothing was removed: " + why))
			}
			record, err := rules.NewRecord(rules.RecordDir)
			if err != nil {
				return failed(err)
			}
			if err := record.MarkCleaning(); err != nil {
				return failed(err)
			}
			recorded, err := record.Patterns()
			if err != nil {
				return failed(err)
			}
			removed, err := rules.Cleanup(imds.Families, append(c.Interfaces, recorded...))
			for _, r := range removed {
				fmt.Fprintf(cmd.OutOrStdout(), "removed %d %s (%s, iptables-%s)\n", r.Copies, plural(r.Copies, "rule"), r.Family, r.Backend)
			}
			if err != nil {
				return failed(err)
			}
			if len(removed) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to remove")
			}
			if err := record.Forget(); err != nil {
				return failed(err)
			}
			return nil
		},
	}
	options.AddTo(cmd.Flags())
	return cmd
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// imds-guard rules: what would be enforced.

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func newRules() *cobra.Command {
	options := config.NewOptions()
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Prints the rules that it would enforce, in iptables-save form, one block a family",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := options.Load()
			if err != nil {
				return err
			}
			for _, f := range imds.Families {
				fmt.Fprintf(cmd.OutOrStdout(), "# %s\n%s", f, rules.Format(rules.Desired(f, c.Policy())))
			}
			return nil
		},
	}
	options.AddTo(cmd.Flags())
	return cmd
}

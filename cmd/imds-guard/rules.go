// imds-guard rules: prints what would be enforced.

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/policy"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func newRules() *cobra.Command {
	options := config.NewOptions()
	cmd := &cobra.Command{
		Use:   "rules",
		Short: "Print what would be enforced: rules in iptables-save format, one block per family; routes and BPF programs as comments",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := options.Load()
			if err != nil {
				return err
			}
			for _, f := range imds.Families {
				fmt.Fprintf(cmd.OutOrStdout(), "# %s\n", f)
				if slices.Contains(c.Layers, rules.LayerName) && c.Mode == policy.Enforce {
					fmt.Fprint(cmd.OutOrStdout(), rules.Format(rules.Desired(f, c.Policy())))
				}
				if slices.Contains(c.Layers, route.LayerName) && c.Mode == policy.Enforce {
					fmt.Fprintf(cmd.OutOrStdout(), "# %s\n", strings.Join(route.Commands(f), "\n# "))
				}
				if slices.Contains(c.Layers, cgroup.LayerName) {
					fmt.Fprintf(cmd.OutOrStdout(), "# BPF programs at the pods' cgroup: %s\n", strings.Join(cgroup.Hooks(f, c.Mode == policy.AuditOnly), ", "))
				}
			}
			return nil
		},
	}
	options.AddTo(cmd.Flags())
	return cmd
}

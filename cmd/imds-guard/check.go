// imds-guard check: one look at this node, changing nothing.

package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/config"
)

func newCheck() *cobra.Command {
	options := config.NewOptions()
	var output string
	var toProbe bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check this node once, changing nothing; exit code 0: protected, 1: not protected, 2: can't tell",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := options.Load()
			if err != nil {
				return err
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("--output: %q is not valid; use text or json", output)
			}
			if err := requireNetAdmin("reading rules"); err != nil {
				return err
			}
			found, err := agent.NewCheck(cmd.Context(), c, toProbe)
			if err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(found)
			} else {
				_, err = fmt.Fprint(cmd.OutOrStdout(), found)
			}
			if err != nil {
				return err
			}
			verdict := found.Verdict()
			if errors.Is(verdict, agent.ErrNotProtected) {
				return command.Fail(verdict)
			}
			return verdict
		},
	}
	options.AddTo(cmd.Flags())
	cmd.Flags().BoolVar(&toProbe, "probe", false, "send a packet and connect a socket as a pod would, and check that both are stopped")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

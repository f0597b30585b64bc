// imds-guard pause: what a container does that has nothing to do.

package main

import "github.com/spf13/cobra"

// newPause makes the command that keeps a pod of the cleanup DaemonSet alive once its work is done: such a pod can't end, and
// a second image for it would have to be pulled, trusted and kept up to date.
func newPause() *cobra.Command {
	return &cobra.Command{
		Use:    "pause",
		Short:  "Do nothing until stopped; for the cleanup DaemonSet",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

// imds-guard pause: a container that has finished its work waits here.

package main

import "github.com/spf13/cobra"

// newPause makes the command that keeps a pod of the cleanup DaemonSet running once its work is done. Such a pod must not exit,
// and a separate pause image would have to be pulled, trusted and kept up to date.
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

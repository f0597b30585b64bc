// imds-guard cleanup: the only thing that removes rules.

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/cgroup"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/probe"
	"github.com/imds-guard/imds-guard/pkg/route"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

func newCleanup() *cobra.Command {
	options := config.NewOptions()
	cmd := &cobra.Command{
		Use:   "cleanup",
		Short: "Remove everything that imds-guard ever installed on this node, and nothing else; stop the agent first",
		Long: "Removes the policy rules, routes and links of the route layer, the programs of the cgroup layer and, from both\n" +
			"iptables backends, every rule that imds-guard writes for the given interface patterns and for all patterns used on\n" +
			"this node since it booted (" + rules.RecordDir + "). It is safe to run more than once.",
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
				return command.Fail(errors.New("nothing was removed: " + why))
			}
			record, err := rules.NewRecord(rules.RecordDir)
			if err != nil {
				return command.Fail(err)
			}
			if err := record.MarkCleaning(); err != nil {
				return command.Fail(err)
			}
			recorded, err := record.Patterns()
			if err != nil {
				return command.Fail(err)
			}
			removed, err := remove(cmd.OutOrStdout(), append(c.Interfaces, recorded...))
			if err != nil {
				return command.Fail(err)
			}
			if !removed {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to remove")
			}
			if err := errors.Join(record.Forget(), record.ForgetAttempts()); err != nil {
				return command.Fail(err)
			}
			return nil
		},
	}
	options.AddTo(cmd.Flags())
	return cmd
}

// remove removes every layer, going on after errors, and prints what it found of each.
func remove(out io.Writer, patterns []ifpattern.Pattern) (found bool, err error) {
	removed, err := rules.Cleanup(imds.Families, patterns)
	errs := []error{err}
	for _, r := range removed {
		found = true
		fmt.Fprintf(out, "removed %d %s (%s, iptables-%s)\n", r.Copies, plural(r.Copies, "rule"), r.Family, r.Backend)
	}
	for _, l := range []struct {
		name    string
		cleanup func(imds.Family) ([]string, error)
	}{{route.LayerName, route.Cleanup}, {cgroup.LayerName, cgroup.Cleanup}} {
		for _, f := range imds.Families {
			pieces, err := l.cleanup(f)
			errs = append(errs, err)
			if len(pieces) > 0 {
				found = true
				fmt.Fprintf(out, "removed %s (%s, %s)\n", strings.Join(pieces, ", "), f, l.name)
			}
		}
	}
	left, err := probe.Cleanup()
	if errs = append(errs, err); left {
		found = true
		fmt.Fprintln(out, "removed the interfaces of an unfinished probe")
	}
	return found, errors.Join(errs...)
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

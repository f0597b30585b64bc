// kubectl imds-guard report and status: both ask the agents and differ only in what they print.

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/report"
)

// document is the output as JSON or YAML.
type document struct {
	Nodes      []report.Node `json:"nodes"`
	Unanswered []unanswered  `json:"unanswered"`
	// Workloads is set by report only.
	Workloads *[]advised `json:"workloads,omitempty"`
}

// advised is a workload with advice on what to do about it.
type advised struct {
	report.Workload
	Advice string `json:"advice"`
}

func newReport(c *cluster) *cobra.Command {
	return newAsk(c, &cobra.Command{
		Use:   "report",
		Short: "Show which workloads ask for the endpoint, for what, and what to do about each",
		Long: "Shows which workloads ask for the endpoint, for what, and what to do about each. Exit code 0: every node answered;\n" +
			"1: at least one did not, or none could be asked; 2: wrong usage.",
	}, func(w io.Writer, nodes []report.Node) error {
		return report.WriteText(w, nodes, report.Merge(nodes))
	}, func(d *document) {
		d.Workloads = &[]advised{}
		for _, w := range report.Merge(d.Nodes) {
			*d.Workloads = append(*d.Workloads, advised{w, w.Advice()})
		}
	})
}

func newStatus(c *cluster) *cobra.Command {
	return newAsk(c, &cobra.Command{
		Use:   "status",
		Short: "Show which nodes are protected, and by which layers",
		Long: "Shows which nodes are protected, and by which layers. Exit code 0: every node answered, protected or not; 1: at least\n" +
			"one did not, or none could be asked; 2: wrong usage.",
	}, report.WriteStatus, func(*document) {})
}

var errInterrupted = errors.New("interrupted before every node had answered")

// asking holds the flags of a command that asks the agents.
type asking struct {
	output   string
	node     string
	selector string
	parallel int
	timeout  time.Duration
}

func (o asking) check() error {
	errs := []error{report.CheckOutput(o.output)}
	if _, err := labels.Parse(o.selector); err != nil || o.selector == "" {
		errs = append(errs, fmt.Errorf("--selector: %q selects no label; use a label of the agents' pods, such as %s", o.selector, agentLabel))
	}
	if o.parallel < 1 {
		errs = append(errs, fmt.Errorf("--parallel: %d would ask no node; use 1 or more", o.parallel))
	}
	if o.timeout <= 0 {
		errs = append(errs, fmt.Errorf("--timeout: %s leaves no time to answer; use a few seconds, such as 5s", o.timeout))
	}
	return errors.Join(errs...)
}

// newAsk makes a command that asks the agents. text prints their answers; complete adds to the document what only this command
// has.
func newAsk(c *cluster, cmd *cobra.Command, text func(io.Writer, []report.Node) error, complete func(*document)) *cobra.Command {
	var o asking
	flags := cmd.Flags()
	flags.StringVarP(&o.output, "output", "o", "text", "text, json or yaml")
	flags.StringVar(&o.node, "node", "", "ask only this `node`")
	flags.StringVarP(&o.selector, "selector", "l", agentLabel, "the `label` of the agents' pods")
	flags.IntVar(&o.parallel, "parallel", 50, "how many nodes to ask at a time")
	flags.DurationVar(&o.timeout, "timeout", 5*time.Second, "how long to wait for each node's answer")
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := o.check(); err != nil {
			return err
		}
		a, err := c.connect()
		if err != nil {
			return err
		}
		ctx := cmd.Context()
		targets, err := a.targets(ctx, o.selector, o.node)
		if ctx.Err() != nil {
			return command.Fail(errInterrupted)
		}
		if errors.Is(err, errNodesUnseen) {
			complain(cmd, err)
		} else if err != nil {
			return err
		}
		bar := newProgress(cmd.ErrOrStderr(), len(targets))
		var d document
		d.Nodes, d.Unanswered = a.askAll(ctx, targets, o.parallel, o.timeout, bar.one)
		bar.end()
		if ctx.Err() != nil {
			return command.Fail(errInterrupted)
		}
		complete(&d)
		err = report.Write(cmd.OutOrStdout(), o.output, d, func(w io.Writer) error { return text(w, d.Nodes) })
		if err != nil {
			return command.Fail(fmt.Errorf("writing the result: %w", err))
		}
		for _, u := range d.Unanswered {
			complain(cmd, fmt.Errorf("%s: %s", u.Node, report.Printable(u.Reason)))
		}
		if n := len(d.Unanswered); n > 0 {
			return command.Fail(fmt.Errorf("%d of %d nodes did not answer", n, len(targets)))
		}
		return nil
	}
	return cmd
}

// progress is a progress line on a terminal, and nothing elsewhere.
type progress struct{ bar *progressbar.ProgressBar }

func newProgress(stderr io.Writer, nodes int) progress {
	if f, ok := stderr.(*os.File); !ok || !term.IsTerminal(int(f.Fd())) {
		return progress{}
	}
	return progress{progressbar.NewOptions(nodes, progressbar.OptionSetWriter(stderr), progressbar.OptionSetDescription("asking nodes"),
		progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))}
}

func (p progress) one() {
	if p.bar != nil {
		_ = p.bar.Add(1)
	}
}

func (p progress) end() {
	if p.bar != nil {
		_ = p.bar.Finish()
	}
}

// imds-guard check: one look at this node, changing nothing.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/ifwatch"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

// checkResult is what check prints as JSON.
type checkResult struct {
	// Protected: every family was read back as stopping the pods' packets, and rules cover every pod-side interface.
	Protected  bool          `json:"protected"`
	Backend    rules.Backend `json:"backend"`
	Families   []checkFamily `json:"families"`
	Interfaces checkLinks    `json:"interfaces"`
}

type checkFamily struct {
	Family enforce.Family `json:"family"`
	Layer  string         `json:"layer"`
	State  enforce.State  `json:"state"`
	Detail string         `json:"detail,omitempty"`
	Rules  []string       `json:"rules"`
}

type checkLinks struct {
	PodSide   int      `json:"podSide"`
	Uncovered []string `json:"uncovered"`
	Error     string   `json:"error,omitempty"`
}

func newCheck() *cobra.Command {
	options := config.NewOptions()
	var output string
	cmd := &cobra.Command{
		Use:   "check",
		Short: "One look at this node, changing nothing; exit 0 protected, 1 not protected, 2 can't tell",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := options.Load()
			if err != nil {
				return err
			}
			if output != "text" && output != "json" {
				return fmt.Errorf("--output: %q is none; use text or json", output)
			}
			if err := requireNetAdmin("reading rules"); err != nil {
				return err
			}
			result, err := check(c)
			if err != nil {
				return err
			}
			if err := result.print(cmd.OutOrStdout(), output); err != nil {
				return err
			}
			return result.verdict()
		},
	}
	options.AddTo(cmd.Flags())
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func check(c config.Config) (checkResult, error) {
	selector, err := rules.NewSelector(c.Backend, enforce.Families)
	if err != nil {
		return checkResult{}, err
	}
	result := checkResult{Backend: selector.Current()}
	for _, l := range newLayers(c, selector) {
		r := l.Read()
		if r.Rules == nil {
			r.Rules = []string{}
		}
		result.Families = append(result.Families, checkFamily{l.Family(), l.Layer(), r.State, r.Detail, r.Rules})
	}
	links, err := ifwatch.List()
	if err != nil {
		result.Interfaces.Error = err.Error()
	}
	result.Interfaces.PodSide = len(links)
	result.Interfaces.Uncovered = []string{}
	for _, i := range ifwatch.Uncovered(links, c.Interfaces) {
		result.Interfaces.Uncovered = append(result.Interfaces.Uncovered, i.Name)
	}
	result.Protected = result.verdict() == nil
	return result, nil
}

// verdict is nil if the node is protected; what is known to be wrong outweighs what is not known.
func (r checkResult) verdict() error {
	unknown, supported := r.Interfaces.Error != "", false
	for _, f := range r.Families {
		supported = supported || f.State != enforce.Unsupported
		unknown = unknown || f.State == enforce.Unknown
		if !f.State.Protects() && f.State != enforce.Unknown {
			return failed(errors.New("not protected"))
		}
	}
	switch {
	case len(r.Interfaces.Uncovered) > 0 || !supported:
		return failed(errors.New("not protected"))
	case unknown:
		return errors.New("can't tell whether this node is protected")
	}
	return nil
}

func (r checkResult) print(w io.Writer, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "protected   %t\nbackend     %s\n", r.Protected, r.Backend)
	for _, f := range r.Families {
		fmt.Fprintf(&b, "%-11s %s", f.Family, f.State)
		if f.Detail != "" {
			fmt.Fprintf(&b, ": %s", f.Detail)
		}
		b.WriteByte('\n')
		for _, rule := range f.Rules {
			fmt.Fprintf(&b, "            %s\n", rule)
		}
	}
	fmt.Fprintf(&b, "interfaces  %d pod-side, %d covered by no rule\n", r.Interfaces.PodSide, len(r.Interfaces.Uncovered))
	for _, name := range r.Interfaces.Uncovered {
		fmt.Fprintf(&b, "            %s: add --interface %s\n", name, ifwatch.Suggest(name))
	}
	if r.Interfaces.Error != "" {
		fmt.Fprintf(&b, "            %s\n", r.Interfaces.Error)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// imds-guard run: the agent.

package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/agent"
	"github.com/imds-guard/imds-guard/pkg/asynclog"
	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/limits"
	"github.com/imds-guard/imds-guard/pkg/node"
)

func newRun() *cobra.Command {
	options := config.NewOptions()
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run the agent: enforce, watch, export metrics; on SIGTERM it stops and leaves the rules in place",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := limits.Prepare(); err != nil {
				return command.Fail(err)
			}
			c, err := options.Load()
			if err != nil {
				return err
			}
			if err := checkFiles(c); err != nil {
				return err
			}
			if err := requireNetAdmin("changing rules"); err != nil {
				return err
			}
			// A log that nobody reads must not hold up a keeper.
			stderr := asynclog.New(os.Stderr)
			defer stderr.Close(time.Second)
			if err := agent.Run(cmd.Context(), c, agent.Build{Version: version, Commit: commit}, newLogger(c, stderr)); err != nil {
				return command.Fail(err)
			}
			return nil
		},
	}
	options.AddTo(cmd.Flags())
	return cmd
}

func newLogger(c config.Config, to io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: c.LogLevel}
	if c.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(to, options))
	}
	return slog.New(slog.NewTextHandler(to, options))
}

// checkFiles checks the files and the environment that the settings refer to, as far as only the agent needs them.
func checkFiles(c config.Config) error {
	var errs []error
	if err := web.Validate(c.WebConfigFile); err != nil {
		words := strings.Join(strings.Fields(err.Error()), " ") // the YAML library's errors span several lines
		errs = append(errs, fmt.Errorf("--web-config-file: reading %s: %s", c.WebConfigFile, words))
	}
	if !agent.UsesAPI(c) {
		return errors.Join(errs...)
	}
	if _, err := node.LoadConfig(c.Kubeconfig); err != nil && c.Kubeconfig != "" {
		errs = append(errs, fmt.Errorf("--kubeconfig: reading %s: %w", c.Kubeconfig, err))
	} else if err != nil && c.Kubernetes == config.On {
		errs = append(errs, fmt.Errorf("--kubernetes: on needs a pod with a service account token, or --kubeconfig; otherwise use off: %w", err))
	}
	if c.NodeName == "" && c.Kubernetes == config.On {
		errs = append(errs, errors.New("--node-name: --kubernetes=on needs it; give it, or set NODE_NAME to the pod's spec.nodeName"))
	}
	for _, problem := range validation.IsDNS1123Subdomain(c.NodeName) {
		if c.NodeName != "" {
			errs = append(errs, fmt.Errorf("--node-name: %q (or NODE_NAME) is not a valid node name: %s", c.NodeName, problem))
		}
	}
	return errors.Join(errs...)
}

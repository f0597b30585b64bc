// Package command holds what the project's programs share: exit codes, errors on stderr, and the version command.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	OK     = 0
	Failed = 1
	Usage  = 2
)

// exitError is an error with an exit code of its own; any other error means wrong usage.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// Fail makes an error that exits the program with Failed.
func Fail(err error) error { return &exitError{Failed, err} }

// Interruptible returns a context that SIGTERM and SIGINT cancel. A second signal ends the program at once, whatever it is
// waiting for.
func Interruptible() (ctx context.Context, stop func()) {
	ctx, stop = signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// Run runs a program and returns its exit code.
func Run(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer, printable func(string) string) int {
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return OK
	}
	Complain(stderr, root, err, printable)
	var exit *exitError
	if errors.As(err, &exit) {
		return exit.code
	}
	return Usage
}

// Complain writes each line of an error separately, prefixed with the program's name and passed through printable unless that
// is nil.
func Complain(stderr io.Writer, root *cobra.Command, err error, printable func(string) string) {
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		if printable != nil {
			line = printable(line)
		}
		fmt.Fprintln(stderr, root.DisplayName()+": "+line)
	}
}

// Root makes a program's root command. Without a subcommand it prints its help and fails as wrong usage.
func Root(name, short, long, example string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Long: long, SilenceErrors: true, SilenceUsage: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help()
			return errors.New("name a command, such as " + example)
		},
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
}

// Version makes the version subcommand.
func Version(version, commit, short string) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: short,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s\ncommit %s\n%s %s/%s\n",
				cmd.Root().DisplayName(), version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

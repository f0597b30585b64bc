// imds-guard ask: what the pods of `helm test` do.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/imds-guard/imds-guard/internal/command"
	"github.com/imds-guard/imds-guard/pkg/imds"
)

// What ask is to find, see newAsk.
const (
	wantAnswer  = "answer"
	wantNone    = "none"
	wantRefusal = "refusal"
)

// askPatience is long enough for a packet that was lost to be sent again.
const askPatience = 3 * time.Second

// newAsk makes the command that connects to the metadata service from where it runs, as any pod's process would. A connection is
// an answer already. No answer is what a guarded pod gets, and what everybody gets where there is no service: so the test needs a
// control, which runs in the node's network and wants an answer. Where that is blocked as well, only a refusal will do, as none
// but a program at the pod's cgroup gives one.
func newAsk() *cobra.Command {
	var want string
	cmd := &cobra.Command{
		Use:    "ask",
		Short:  "Connects to the metadata service once, and fails if that comes out other than wanted; for `helm test`",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{wantAnswer, wantNone, wantRefusal}, want) {
				return fmt.Errorf("--want: %q is none; use %s, %s or %s", want, wantAnswer, wantNone, wantRefusal)
			}
			var answered, refused bool
			for _, f := range imds.Families {
				err := connect(cmd.Context(), f)
				answered = answered || err == nil
				refused = refused || errors.Is(err, syscall.EPERM)
				result := "answered"
				if err != nil {
					result = err.Error()
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s %s: %s\n", f, f.Endpoint().Addr(), result)
			}
			if fault := judge(want, answered, refused); fault != "" {
				return command.Fail(errors.New(fault))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&want, "want", wantNone, strings.Join([]string{wantAnswer, wantNone, wantRefusal}, ", "))
	return cmd
}

// connect returns nil if the metadata service has accepted a connection.
func connect(ctx context.Context, f imds.Family) error {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", netip.AddrPortFrom(f.Endpoint().Addr(), 80).String())
	if err != nil {
		return err
	}
	return conn.Close()
}

// judge says what is wrong with the outcome in all families, or nothing.
func judge(want string, answered, refused bool) string {
	switch {
	case want == wantAnswer && answered, want == wantNone && !answered, want == wantRefusal && refused && !answered:
		return ""
	case want != wantAnswer && answered:
		return "the metadata service answered a pod: IMDS is not blocked here"
	case want == wantRefusal:
		return "no answer, but no refusal by the layer cgroup either: perhaps there is no metadata service to be kept away from"
	case refused:
		return "refused in the node's own network: agent.hostNetworkPods blocks this pod, so nobody can tell whether there is a " +
			"metadata service to be kept away from"
	default:
		return "no answer in the node's own network: there is no metadata service here to be kept away from. Is this an EC2 " +
			"instance, with its metadata endpoint enabled?"
	}
}

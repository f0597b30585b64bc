// imds-guard ask: what the pods of `helm test` do.

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
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

const (
	// dialPatience is long enough for a packet that was lost to be sent again.
	dialPatience = 3 * time.Second
	// networkPatience is long enough for a CNI that gives a new pod its network, or opens it, only after it has started.
	networkPatience = time.Minute
)

// newAsk makes the command that connects to the metadata service from where it runs, as any pod's process would. A connection is
// an answer already. No answer is what a guarded pod gets, and what everybody gets where there is no service: so the test needs a
// control, which runs in the node's network and wants an answer. Where that is blocked as well, only a refusal will do, as none
// but a program at the pod's cgroup gives one. No answer is also what a pod gets that has no network: so one that is not refused
// has to reach the API server first.
func newAsk() *cobra.Command {
	var want string
	var patience time.Duration
	cmd := &cobra.Command{
		Use:    "ask",
		Short:  "Connects to the metadata service once, and fails if that comes out other than wanted; for `helm test`",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains([]string{wantAnswer, wantNone, wantRefusal}, want) {
				return fmt.Errorf("--want: %q is none; use %s, %s or %s", want, wantAnswer, wantNone, wantRefusal)
			}
			out := cmd.OutOrStdout()
			node := cmp.Or(os.Getenv("NODE_NAME"), "(NODE_NAME is not set)")
			fmt.Fprintln(out, "on the node", node)
			found := ask(cmd.Context(), out)
			if want == wantNone && !found.answered && !found.refused {
				if err := reachAPI(cmd.Context(), out, patience); err != nil {
					return command.Fail(fmt.Errorf("this pod reaches nothing at all, not even the API server, so that the metadata service "+
						"does not answer it proves nothing. Does a NetworkPolicy deny egress here? (%w)", err))
				}
				// What it got before may be for want of a network.
				found = ask(cmd.Context(), out)
			}
			if fault := judge(want, found); fault != "" {
				return command.Fail(errors.New(fault))
			}
			if want != wantAnswer {
				fmt.Fprintln(out, "proven: pods are kept away from the metadata service on the node", node)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&want, "want", wantNone, strings.Join([]string{wantAnswer, wantNone, wantRefusal}, ", "))
	cmd.Flags().DurationVar(&patience, "patience", networkPatience, "how long to try to reach the API server")
	return cmd
}

// outcome is that of all families.
type outcome struct{ answered, refused bool }

// ask connects to the metadata service in each family.
func ask(ctx context.Context, out io.Writer) (found outcome) {
	for _, f := range imds.Families {
		err := connect(ctx, netip.AddrPortFrom(f.Endpoint().Addr(), 80).String())
		found.answered = found.answered || err == nil
		found.refused = found.refused || errors.Is(err, syscall.EPERM)
		result := "answered"
		if err != nil {
			result = err.Error()
		}
		fmt.Fprintf(out, "%s %s: %s\n", f, f.Endpoint().Addr(), result)
	}
	return found
}

// reachAPI returns nil as soon as the API server has accepted a connection, where the kubelet tells every container it is.
func reachAPI(ctx context.Context, out io.Writer, patience time.Duration) error {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set, as they are in every pod")
	}
	address := net.JoinHostPort(host, port)
	fmt.Fprintf(out, "the API server at %s, tried for %s\n", address, patience)
	for start := time.Now(); ; time.Sleep(time.Second) {
		err := connect(ctx, address)
		if err == nil {
			fmt.Fprintln(out, "the API server accepts a connection: this pod has a network")
			return nil
		}
		if time.Since(start) > patience || ctx.Err() != nil {
			return err
		}
	}
}

// connect returns nil if a connection to the address was accepted.
func connect(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

// judge says what is wrong with the outcome, or nothing.
func judge(want string, found outcome) string {
	switch {
	case want == wantAnswer && found.answered, want == wantNone && !found.answered, want == wantRefusal && found.refused && !found.answered:
		return ""
	case want != wantAnswer && found.answered:
		return "the metadata service answered a pod: IMDS is not blocked here. (In audit mode, and after a cleanup, it is blocked nowhere)"
	case want == wantRefusal:
		return "no answer, but no refusal by the layer cgroup either: perhaps there is no metadata service to be kept away from"
	case found.refused:
		return "refused in the node's own network: agent.hostNetworkPods blocks this pod, so nobody can tell whether there is a " +
			"metadata service to be kept away from"
	default:
		return "no answer in the node's own network: there is no metadata service here to be kept away from. Is this an EC2 " +
			"instance, with its metadata endpoint enabled?"
	}
}

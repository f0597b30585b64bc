// Asking the agents: `imds-guard report` is run in each one's pod, as `kubectl exec` would.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"

	"github.com/imds-guard/imds-guard/pkg/report"
)

// reportCommand is what is run. The path is the image's.
var reportCommand = []string{"/usr/local/bin/imds-guard", "report", "-o", "json"}

// What is taken of one agent, so that a node with something evil on it can't fill the memory here. A thousand workloads are less
// than a megabyte.
const (
	maxAnswer    = 4 << 20
	maxComplaint = 4 << 10
)

var errTooLong = fmt.Errorf("its answer is longer than %d MiB", maxAnswer>>20)

// unanswered is a node that nothing is known of.
type unanswered struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
}

// askAll asks all targets, some at a time and each for so long at most, and calls done after each. Both results are in the
// targets' order. It ends when ctx does, with what there is until then.
func (a *api) askAll(ctx context.Context, targets []target, parallel int, each time.Duration, done func()) ([]report.Node, []unanswered) {
	answers := make([]report.Node, len(targets))
	errs := make([]error, len(targets))
	var group errgroup.Group
	group.SetLimit(parallel)
	for i, t := range targets {
		if t.reason != "" {
			errs[i] = errors.New(t.reason)
			done()
			continue
		}
		group.Go(func() error {
			defer done()
			answers[i], errs[i] = a.ask(ctx, t, each)
			return nil
		})
	}
	group.Wait() // no function of it has failed
	nodes, silent := []report.Node{}, []unanswered{}
	for i, t := range targets {
		if errs[i] != nil {
			silent = append(silent, unanswered{t.node, errs[i].Error()})
			continue
		}
		nodes = append(nodes, answers[i])
	}
	return nodes, silent
}

// ask asks one agent. The error says why that came to nothing.
func (a *api) ask(ctx context.Context, t target, limit time.Duration) (report.Node, error) {
	errLate := fmt.Errorf("no answer within %s", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stdout := &limited{max: maxAnswer, full: func() { stop(errTooLong) }}
	stderr := &limited{max: maxComplaint, full: func() {}}

	// The library doesn't notice a Ctrl-C while it waits for the answer to a handshake, so it is left alone with that.
	ended := make(chan error, 1)
	go func() { ended <- a.exec(ctx, t.pod, stdout, stderr) }()
	var err error
	select {
	case <-ctx.Done():
		return report.Node{}, context.Cause(ctx)
	case err = <-ended:
	}
	var exit exec.CodeExitError
	switch {
	case ctx.Err() != nil:
		return report.Node{}, context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded): // the socket has the same deadline, and may be the first to notice
		return report.Node{}, errLate
	case errors.As(err, &exit):
		return report.Node{}, fmt.Errorf("`imds-guard report` exited with code %d: %s", exit.Code, stderr.lastLine())
	case refused(err):
		return report.Node{}, fmt.Errorf("you need permission to get and create pods/exec in namespace %s: %w", a.namespace, err)
	case err != nil:
		return report.Node{}, fmt.Errorf("running `imds-guard report` in pod %s: %w", t.pod, err)
	}
	return parse(t.node, stdout.buffer.Bytes())
}

// parse reads an answer. The node's name is the API server's: no node speaks for another.
func parse(node string, answer []byte) (report.Node, error) {
	var n report.Node
	if err := json.Unmarshal(answer, &n); err != nil {
		return report.Node{}, fmt.Errorf("its answer is not a report: %w", err)
	}
	if n.Mode == "" {
		return report.Node{}, errors.New("its answer is not a report: it has no mode")
	}
	n.Node = node
	return n, nil
}

// exec runs the command in the agent's container, by WebSocket, or by SPDY where the API server, or what stands before it, is too
// old for that.
func (a *api) exec(ctx context.Context, pod string, stdout, stderr io.Writer) error {
	ctx = klog.NewContext(ctx, klog.Logger{}) // what the library complains of is in its error too
	url := a.core.RESTClient().Get().Namespace(a.namespace).Resource("pods").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Container: agentContainer, Command: reportCommand, Stdout: true, Stderr: true},
			scheme.ParameterCodec).URL()
	webSocket, err := remotecommand.NewWebSocketExecutor(a.config, http.MethodGet, url.String())
	if err != nil {
		return err
	}
	spdy, err := remotecommand.NewSPDYExecutor(a.config, http.MethodPost, url)
	if err != nil {
		return err
	}
	// WebSocket begins with a GET, which takes the right to get pods/exec; SPDY takes that to create it, and doesn't say by its error
	// that it was refused.
	var forbidden error
	executor, err := remotecommand.NewFallbackExecutor(webSocket, spdy, func(err error) bool {
		if refused(err) {
			forbidden = err
		}
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return err
	}
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: stdout, Stderr: stderr})
	if forbidden != nil && strings.Contains(fmt.Sprint(err), "unable to upgrade connection") {
		return forbidden
	}
	return err
}

// refused: the user lacks a right.
func refused(err error) bool {
	if failure := (*httpstream.UpgradeFailureError)(nil); errors.As(err, &failure) {
		err = failure.Cause // it doesn't unwrap itself
	}
	return apierrors.IsForbidden(err)
}

// limited keeps the first max bytes. Whoever writes more is not told, and full is called.
type limited struct {
	buffer bytes.Buffer
	max    int
	full   func()
}

// Write implements io.Writer.
func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.buffer.Len(); len(p) > room {
		l.buffer.Write(p[:room])
		l.full()
		return len(p), nil
	}
	return l.buffer.Write(p)
}

// lastLine is where a program says why it ended.
func (l *limited) lastLine() string {
	lines := strings.Split(strings.TrimSpace(l.buffer.String()), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

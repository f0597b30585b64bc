// Asking the agents: runs `imds-guard report` in each agent's pod, as `kubectl exec` would.

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

// reportCommand is the command to run in the pod. The path is the one in the image.
var reportCommand = []string{"/usr/local/bin/imds-guard", "report", "-o", "json"}

// Limits on what is read from one agent, so that a compromised node can't exhaust the memory here. A thousand workloads take
// less than a megabyte.
const (
	maxAnswer    = 4 << 20
	maxComplaint = 4 << 10
)

var errTooLong = fmt.Errorf("its answer is longer than %d MiB", maxAnswer>>20)

// unanswered is a node that gave no answer, and why.
type unanswered struct {
	Node   string `json:"node"`
	Reason string `json:"reason"`
}

// askAll asks all targets, a limited number at a time and each for a limited time, and calls done after each. Both results are
// in the order of targets. When ctx ends it returns what it has so far.
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
	group.Wait() // its functions never return an error
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

// ask asks one agent. The error says why there is no report.
func (a *api) ask(ctx context.Context, t target, limit time.Duration) (report.Node, error) {
	errLate := fmt.Errorf("no answer within %s", limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errLate)
	defer cancel()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	stdout := &limited{max: maxAnswer, full: func() { stop(errTooLong) }}
	stderr := &limited{max: maxComplaint, full: func() {}}

	// The library doesn't notice a Ctrl-C while it waits for a handshake, so don't wait for it to return.
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
	case errors.Is(err, os.ErrDeadlineExceeded): // the socket has the same deadline and may hit it first
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

// parse reads an answer. The node's name is taken from the API server, so that no node can answer for another.
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

// exec runs the command in the agent's container over WebSocket, or over SPDY where the API server, or a proxy in front of it,
// is too old for that.
func (a *api) exec(ctx context.Context, pod string, stdout, stderr io.Writer) error {
	ctx = klog.NewContext(ctx, klog.Logger{}) // what the library would log is in its error as well
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
	// WebSocket starts with a GET and needs permission to get pods/exec. SPDY needs permission to create it, and its error
	// doesn't say that it was forbidden.
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

// refused reports whether the user lacks a permission.
func refused(err error) bool {
	if failure := (*httpstream.UpgradeFailureError)(nil); errors.As(err, &failure) {
		err = failure.Cause // it has no Unwrap method
	}
	return apierrors.IsForbidden(err)
}

// limited keeps the first max bytes. A longer write succeeds all the same, and full is called.
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

// lastLine returns the last line, where a program says why it exited.
func (l *limited) lastLine() string {
	lines := strings.Split(strings.TrimSpace(l.buffer.String()), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

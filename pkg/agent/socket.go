// The socket by which `imds-guard report` asks the agent.

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/report"
	"github.com/imds-guard/imds-guard/pkg/subscription"
)

const (
	// answerTime bounds one answer: a client that doesn't read it can't hold up the others for longer.
	answerTime = 5 * time.Second
	// mostAsking is how many clients are answered at a time.
	mostAsking = 8
)

// answers serves reports.
type answers struct {
	path   string
	report func() report.Node
	log    *slog.Logger
}

// run serves until ctx ends.
func (s answers) run(ctx context.Context) {
	subscription.Keep(ctx, s.serve, func(err error) {
		s.log.Warn("can't serve reports; trying again", "error", err)
	})
}

func (s answers) serve(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return fmt.Errorf("making the socket's directory: %w", err)
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) { // left behind by a killed agent
		return fmt.Errorf("removing an old socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening: %w", err)
	}
	// The file stays when this agent ends: it may belong to the next one by then.
	l.SetUnlinkOnClose(false)
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	if err := os.Chmod(s.path, 0o600); err != nil {
		return fmt.Errorf("closing the socket to others: %w", err)
	}
	free := make(chan struct{}, mostAsking)
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return fmt.Errorf("accepting: %w", err)
		}
		free <- struct{}{}
		go func() {
			defer func() { <-free }()
			if err := s.answer(conn); err != nil {
				s.log.Warn("refused or failed to answer a report request", "error", err)
			}
		}()
	}
}

// answer gives the report to root only. (The file's permissions ensure that too, except in the moment when the socket is made.)
func (s answers) answer(conn *net.UnixConn) error {
	defer conn.Close()
	uid, err := peer(conn)
	if err != nil {
		return fmt.Errorf("identifying the caller: %w", err)
	}
	if uid != 0 {
		return fmt.Errorf("user %d is not root", uid)
	}
	if err := conn.SetDeadline(time.Now().Add(answerTime)); err != nil {
		return err
	}
	return json.NewEncoder(conn).Encode(s.report())
}

// peer returns the user at the other end, in the node's user namespace; a user that doesn't exist there is nobody.
func peer(conn *net.UnixConn) (uid uint32, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var is *unix.Ucred
	if controlled := raw.Control(func(fd uintptr) { is, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); controlled != nil {
		return 0, controlled
	}
	if err != nil {
		return 0, err
	}
	return is.Uid, nil
}

// ErrNoAgent says that no agent answers on this node.
var ErrNoAgent = errors.New("no agent answers on this node")

// Ask asks this node's agent for its report.
func Ask(ctx context.Context, path string) (n report.Node, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*answerTime)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, unix.EACCES):
		return n, errors.New("only root may ask the agent; run this as root")
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED):
		return n, ErrNoAgent
	case err != nil:
		return n, fmt.Errorf("asking the agent: %w", err)
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return n, err
	}
	if err := json.NewDecoder(conn).Decode(&n); err != nil {
		return n, fmt.Errorf("reading the agent's answer: %w", err)
	}
	return n, nil
}

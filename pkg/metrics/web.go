// One listener: its limits, its TLS and passwords, and its restarts.

package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
)

const (
	// retryPause is the time between two attempts to serve, and between two looks at the web configuration.
	retryPause = 5 * time.Second
	// ioTimeout bounds how long a request may take to arrive, how long an answer may take to be read, and how long a connection
	// may be idle.
	ioTimeout = 10 * time.Second
)

// endpoint is one address.
type endpoint struct {
	what, address string // what names it in the log
	webConfigFile string // empty: plain HTTP
	handler       http.Handler
	log           *slog.Logger
	pause         func(context.Context, time.Duration) bool // sleep
}

// run serves until ctx ends, starting over after failures. A failure is logged once, when it begins.
func (e *endpoint) run(ctx context.Context) {
	reported := false
	serving := func(address net.Addr) {
		e.log.Info("serving "+e.what, "address", address.String())
		reported = false
	}
	for ctx.Err() == nil {
		err := e.serve(ctx, serving)
		if err == nil || ctx.Err() != nil {
			continue
		}
		if !reported {
			e.log.Error("serving "+e.what+" failed; trying again, the rules are not affected",
				"address", e.address, "error", err)
			reported = true
		}
		e.pause(ctx, retryPause)
	}
}

// serve returns nil when ctx has ended, or when the web configuration has changed and has to be reloaded.
func (e *endpoint) serve(ctx context.Context, serving func(net.Addr)) error {
	config, err := readWebConfig(e.webConfigFile)
	if err != nil {
		return err
	}
	listener, err := listen(ctx, e.address, ioTimeout)
	if err != nil {
		return err
	}
	defer listener.Close()
	serving(listener.Addr())

	server := &http.Server{
		Handler: e.handler, MaxHeaderBytes: 16 << 10,
		ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, IdleTimeout: ioTimeout,
		// HTTP/2 would carry hundreds of requests on each of the connections that are counted.
		Protocols: new(http.Protocols),
		// Failed handshakes go to the debug level, or any pod could fill the log with them.
		ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug),
	}
	server.Protocols.SetHTTP1(true)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if e.webConfigFile != "" {
		go e.awaitChange(ctx, config, stop)
	}
	// The toolkit would log what is already logged here, and a broken file at every request.
	err = web.Serve(listener, server,
		&web.FlagConfig{WebConfigFile: &e.webConfigFile}, slog.New(slog.DiscardHandler))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// awaitChange calls changed when the web configuration differs or can't be used any more. The toolkit reloads certificates and
// passwords by itself, but not whether TLS is on: a server that started without TLS would go on without it, and take passwords
// in clear text although the file now asks for TLS.
func (e *endpoint) awaitChange(ctx context.Context, config []byte, changed func()) {
	for e.pause(ctx, retryPause) {
		if now, err := readWebConfig(e.webConfigFile); err != nil || !bytes.Equal(now, config) {
			changed()
			return
		}
	}
}

// readWebConfig returns the text of a valid file, having checked the certificates that it names.
func readWebConfig(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = web.Validate(file)
	}
	if err != nil {
		return nil, fmt.Errorf("reading the web configuration %s: %w", file, err)
	}
	return text, nil
}

// sleep waits for d and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

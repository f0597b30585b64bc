// The HTTP endpoints.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

const (
	// rebindPause is the time between two attempts to bind a port that is taken.
	rebindPause = 5 * time.Second
	// The port is open to every pod. None may hold so many connections, or so long, that the agent runs out of memory and
	// is killed: idle ones, slow readers and scrapes in parallel are bounded.
	maxConnections = 64
	maxScrapes     = 4
	ioTimeout      = 10 * time.Second
)

// Server serves /metrics, /healthz and /readyz.
type Server struct {
	Address string
	Metrics *Metrics
	// Healthy and Ready return why not, or nil.
	Healthy, Ready func() error
	Log            *slog.Logger
}

// Run serves until ctx ends. An address that can't be bound is reported once and tried again: nothing here may end the
// program.
func (s *Server) Run(ctx context.Context) {
	server := &http.Server{
		Handler: s.handler(), MaxHeaderBytes: 16 << 10,
		ReadTimeout: ioTimeout, WriteTimeout: ioTimeout, IdleTimeout: ioTimeout,
	}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	reported := false
	for ctx.Err() == nil {
		listener, err := net.Listen("tcp", s.Address)
		if err == nil {
			s.Log.Info("serving metrics", "address", listener.Addr().String())
			reported = false
			err = server.Serve(netutil.LimitListener(listener, maxConnections))
		}
		if ctx.Err() != nil || errors.Is(err, http.ErrServerClosed) {
			return
		}
		if !reported {
			s.Log.Error("serving metrics failed; trying again, the rules are not affected",
				"address", s.Address, "error", err)
			reported = true
		}
		select {
		case <-ctx.Done():
		case <-time.After(rebindPause):
		}
	}
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Metrics.Registry, promhttp.HandlerOpts{
		Registry: s.Metrics.Registry, MaxRequestsInFlight: maxScrapes,
	}))
	mux.Handle("GET /healthz", probe(s.Healthy))
	mux.Handle("GET /readyz", probe(s.Ready))
	return mux
}

func probe(check func() error) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

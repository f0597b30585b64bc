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
)

// rebindPause is the time between two attempts to bind a port that is taken.
const rebindPause = 5 * time.Second

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
	server := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	reported := false
	for ctx.Err() == nil {
		listener, err := net.Listen("tcp", s.Address)
		if err == nil {
			s.Log.Info("serving metrics", "address", listener.Addr().String())
			reported = false
			err = server.Serve(listener)
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
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.Metrics.Registry, promhttp.HandlerOpts{Registry: s.Metrics.Registry}))
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

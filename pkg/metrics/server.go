// The HTTP endpoints, and where they are served.

package metrics

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Server serves /metrics, /healthz and /readyz.
type Server struct {
	// Address is where all three are served; empty for nowhere.
	Address string
	// HealthAddress is where /healthz and /readyz are served as well, over plain HTTP and without a password, since the
	// kubelet's probes can't send one; empty for nowhere.
	HealthAddress string
	// WebConfigFile configures TLS, passwords or client certificates for Address, in the format of Prometheus'
	// exporter-toolkit. Empty: plain HTTP for everybody.
	WebConfigFile string
	Metrics       *Metrics
	// Healthy and Ready return nil, or an error that says why not.
	Healthy, Ready func() error
	Log            *slog.Logger

	pause func(context.Context, time.Duration) bool // replaces sleep in tests
}

// Run serves until ctx ends. An address that can't be served is reported once and tried again, independently of the others: no
// failure here may end the program.
func (s *Server) Run(ctx context.Context) {
	all, health := http.NewServeMux(), http.NewServeMux()
	all.Handle("GET /metrics", scrapes(promhttp.HandlerFor(s.Metrics.Registry, promhttp.HandlerOpts{
		Registry: s.Metrics.Registry,
	})))
	for _, mux := range []*http.ServeMux{all, health} {
		mux.Handle("GET /healthz", verdict(s.Healthy))
		mux.Handle("GET /readyz", verdict(s.Ready))
	}
	pause := s.pause
	if pause == nil {
		pause = sleep
	}
	var wg sync.WaitGroup
	for _, e := range []*endpoint{
		{what: "metrics", address: s.Address, webConfigFile: s.WebConfigFile, handler: all, log: s.Log, pause: pause},
		{what: "health", address: s.HealthAddress, handler: health, log: s.Log, pause: pause},
	} {
		if e.address != "" {
			wg.Go(func() { e.run(ctx) })
		}
	}
	wg.Wait()
}

func verdict(check func() error) http.HandlerFunc {
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

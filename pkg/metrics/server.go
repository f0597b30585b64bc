// What is served, and to whom.

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
	// Address is where all three are; empty: nowhere.
	Address string
	// HealthAddress is where /healthz and /readyz are as well, by plain HTTP and without a password, which the kubelet's
	// probes can't give; empty: nowhere.
	HealthAddress string
	// WebConfigFile asks for TLS, passwords or client certificates at Address, in the form of Prometheus'
	// exporter-toolkit. Empty: plain HTTP for everybody.
	WebConfigFile string
	Metrics       *Metrics
	// Healthy and Ready return why not, or nil.
	Healthy, Ready func() error
	Log            *slog.Logger

	pause func(context.Context, time.Duration) bool // a test's, instead of sleep
}

// Run serves until ctx ends. What can't be served is reported once and tried again, each address by itself: nothing here
// may end the program.
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

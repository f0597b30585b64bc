package main

import (
	"log/slog"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/guard"
)

// /healthz fails when no look has ended for too long, and only then: being unprotected is no reason to be restarted.
func TestHealthy(t *testing.T) {
	const resync = 10 * time.Second
	a := &agent{
		config:  config.Config{Resync: resync},
		guard:   guard.New(guard.Config{Resync: resync, Log: slog.New(slog.DiscardHandler)}),
		started: time.Now(),
	}
	if err := a.healthy(); err != nil {
		t.Errorf("right after the start: %v", err)
	}
	a.started = time.Now().Add(-3*resync - stuckAfter - time.Second)
	if a.healthy() == nil {
		t.Error("healthy although the first look never ended")
	}
	a.guard.Enforce()
	if err := a.healthy(); err != nil {
		t.Errorf("after a look: %v", err)
	}
	if a.ready() == nil {
		t.Error("ready without a single layer that was read back")
	}
}

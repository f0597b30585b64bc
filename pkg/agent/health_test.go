package agent

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/imds-guard/imds-guard/pkg/config"
	"github.com/imds-guard/imds-guard/pkg/layer"
)

// A keeper counts as stuck just after three resync periods and a minute, but only in the node's namespace.
func TestHealthyToTheMoment(t *testing.T) {
	const resync = 20 * time.Second
	for _, c := range []struct {
		passed    time.Duration
		elsewhere string
		healthy   bool
	}{
		{3*resync + time.Minute, "", true},
		{3*resync + time.Minute + 1, "", false},
		{time.Hour, "", false},
		{time.Hour, "not the node", true},
	} {
		synctest.Test(t, func(t *testing.T) {
			a := &agent{config: config.Config{Resync: resync}, guard: guardOf(t, layer.Missing, layer.Enforced), elsewhere: c.elsewhere}
			time.Sleep(c.passed)
			err := a.healthy()
			if (err == nil) != c.healthy {
				t.Errorf("after %s, %q: %v", c.passed, c.elsewhere, err)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "the keeper of fake ipv4 is stuck: its last look ended ") {
				t.Errorf("it says %q", err)
			}
		})
	}
}

// A protected node is ready; otherwise the answer has every layer's state.
func TestReady(t *testing.T) {
	for _, c := range []struct {
		states    []layer.State
		elsewhere string
		want      string
	}{
		{[]layer.State{layer.Enforced, layer.Enforced}, "", ""},
		{[]layer.State{layer.Enforced, layer.Missing}, "", "not protected: fake ipv4 rules are enforced; fake ipv6 rules are missing"},
		{[]layer.State{layer.Enforced, layer.Enforced}, "not the node",
			"not protected: fake ipv4 rules are unknown: not the node; fake ipv6 rules are unknown: not the node"},
	} {
		got := ""
		if err := (&agent{guard: guardOf(t, c.states...), elsewhere: c.elsewhere}).ready(); err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%v: %q, want %q", c.states, got, c.want)
		}
	}
}

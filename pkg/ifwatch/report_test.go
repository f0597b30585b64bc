package ifwatch

import (
	"bytes"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// logged makes a Reporter and a function that returns what it has logged since it was last called.
func logged() (*Reporter, func() string) {
	var b bytes.Buffer
	return &Reporter{Log: slog.New(slog.NewTextHandler(&b, nil))}, func() string {
		defer b.Reset()
		return b.String()
	}
}

// An interface is named once, and only after it had the time to get its bridge or its name.
func TestReportInterface(t *testing.T) {
	r, log := logged()
	var notified []string
	r.Notify = func(name, fix string) { notified = append(notified, name+": "+fix) }
	veth := []Interface{{"veth1", "veth"}}
	start := time.Now()
	for _, c := range []struct {
		after     time.Duration
		uncovered []Interface
		settled   []string
		pending   bool
		lines     int
	}{
		{0, veth, nil, true, 0},
		{QuietTime / 2, veth, nil, true, 0},
		{QuietTime, veth, []string{"veth1"}, false, 1},
		{time.Hour, veth, []string{"veth1"}, false, 0},
		{2 * time.Hour, nil, nil, false, 0},
		{3 * time.Hour, veth, nil, true, 0},
		{4 * time.Hour, veth, []string{"veth1"}, false, 1},
	} {
		settled, pending := r.Report(start.Add(c.after), c.uncovered, nil)
		if !slices.Equal(settled, c.settled) || pending != c.pending {
			t.Errorf("after %s: %q, %t, want %q, %t", c.after, settled, pending, c.settled, c.pending)
		}
		lines := log()
		if got := strings.Count(lines, "interface=veth1"); got != c.lines {
			t.Errorf("after %s: %d lines, want %d", c.after, got, c.lines)
		}
		if c.lines > 0 && (!strings.Contains(lines, "level=WARN") || !strings.Contains(lines, "--interface veth+")) {
			t.Errorf("the line is %s", lines)
		}
	}
	if want := []string{"veth1: add --interface veth+", "veth1: add --interface veth+"}; !slices.Equal(notified, want) {
		t.Errorf("notified of %q, want %q", notified, want)
	}
}

// A tunnel is named once for as long as it stays, and nothing else follows from it.
func TestReportTunnel(t *testing.T) {
	r, log := logged()
	r.Notify = func(name, _ string) { t.Errorf("notified of %s", name) }
	flannel := []Interface{{"flannel.1", "vxlan"}}
	start := time.Now()
	for i, c := range []struct {
		open  []Interface
		lines int
	}{{flannel, 1}, {flannel, 0}, {append(flannel, Interface{"tunl0", "ipip"}), 1}, {nil, 0}, {flannel, 1}} {
		if settled, pending := r.Report(start.Add(time.Duration(i)*time.Hour), nil, c.open); len(settled) > 0 || pending {
			t.Errorf("report %d counts: %q, %t", i, settled, pending)
		}
		lines := log()
		if got := strings.Count(lines, "\n"); got != c.lines {
			t.Errorf("report %d has %d lines, want %d:\n%s", i, got, c.lines, lines)
		}
		for _, want := range []string{"level=WARN", "encapsulated packets", "interface=flannel.1", "kind=vxlan", `fix="add --interface flannel.1"`} {
			if i == 0 && !strings.Contains(lines, want) {
				t.Errorf("%q is not in %s", want, lines)
			}
		}
	}
}

//go:build linux

// What the agent costs while nothing happens.

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	cpuGoal      = 0.001 // of a core
	memoryGoal   = 40 << 20
	scrapePeriod = 15 * time.Second
	// ticksPerSecond is USER_HZ, 100 on every platform that the guard runs on (proc(5), sysconf(_SC_CLK_TCK)).
	ticksPerSecond = 100
)

func measureIdle(ctx context.Context, b *bench) (result, error) {
	r := result{how: fmt.Sprintf("Two agents with default flags (a look every 10 s) run at the same time, on one node for each "+
		"backend: %s undisturbed, then %s with /metrics read every %s. CPU is the user and system time of the "+
		"agent and the commands it ran (/proc/PID/stat, in steps of 10 ms), memory the largest VmRSS, read "+
		"every second. Measured at the same time as what users have today, on separate nodes.",
		b.sizes.idle, b.sizes.idle, scrapePeriod)}
	rows := make([][]row, len(backends))
	err := together(ctx, len(backends), func(ctx context.Context, i int) error {
		return withNode(ctx, backends[i], func(n *node) error {
			return b.withAgent(ctx, n, func(a *agent) (err error) {
				rows[i], err = idleRows(ctx, b, n, a)
				return err
			})
		})
	})
	for _, of := range rows {
		r.rows = append(r.rows, of...)
	}
	return r, err
}

func idleRows(ctx context.Context, b *bench, n *node, a *agent) (rows []row, err error) {
	// The agents of today start at the same time.
	if err := wait(ctx, 5*time.Second); err != nil {
		return nil, err
	}
	for _, scraped := range []bool{false, true} {
		use, err := b.measureUse(ctx, n, a, scraped)
		if err != nil {
			return nil, err
		}
		what := string(n.backend)
		if scraped {
			what += ", scraped"
		}
		rows = append(rows,
			row{
				what: what + ", CPU", goal: fmt.Sprintf("≤ %.1f %% of a core", cpuGoal*100),
				result: fmt.Sprintf("%.3f %% (%s in %.0f s)", use.share()*100, milliseconds(use.cpu), use.during.Seconds()),
				met:    verdict(use.share() <= cpuGoal),
			},
			row{
				what: what + ", memory", goal: fmt.Sprintf("≤ %d MiB", memoryGoal>>20),
				result: fmt.Sprintf("%.1f MiB", float64(use.memory)/(1<<20)), met: verdict(use.memory <= memoryGoal),
			})
	}
	return rows, nil
}

// use is what a process used.
type use struct {
	cpu, during time.Duration
	memory      int
}

func (u use) share() float64 { return u.cpu.Seconds() / u.during.Seconds() }

func (b *bench) measureUse(ctx context.Context, n *node, a *agent, scraped bool) (u use, err error) {
	pid := a.cmd.Process.Pid
	if err := b.isGuard(pid); err != nil {
		return u, err
	}
	before, err := cpuTime(pid)
	if err != nil {
		return u, err
	}
	began := time.Now()
	scrape := began.Add(scrapePeriod / 2)
	for time.Since(began) < b.sizes.idle {
		memory, err := residentMemory(pid)
		if err != nil {
			return u, err
		}
		u.memory = max(u.memory, memory)
		if scraped && time.Now().After(scrape) {
			if _, err := n.Host().Get(ctx, "http://127.0.0.1:9169/metrics"); err != nil {
				return u, err
			}
			scrape = scrape.Add(scrapePeriod)
		}
		if err := wait(ctx, min(time.Second, time.Until(began.Add(b.sizes.idle)))); err != nil {
			return u, err
		}
	}
	after, err := cpuTime(pid)
	u.cpu, u.during = after-before, time.Since(began)
	return u, err
}

// isGuard makes sure that nsenter has become the guard.
func (b *bench) isGuard(pid int) error {
	running, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return fmt.Errorf("looking at the agent's process: %w", err)
	}
	guard, err := os.Stat(b.guard)
	if err != nil {
		return fmt.Errorf("looking at the agent's binary: %w", err)
	}
	if !os.SameFile(running, guard) {
		return fmt.Errorf("looking at the agent's process: %d is another one", pid)
	}
	return nil
}

// cpuTime is what a process and its ended children have used, from /proc/PID/stat: utime, stime, cutime and cstime.
func cpuTime(pid int) (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the agent's CPU time: %w", err)
	}
	_, rest, _ := strings.Cut(string(text), ") ") // a name may contain this too, but not the agent's
	fields := strings.Fields(rest)                // from field 3 on
	if len(fields) < 15 {
		return 0, errors.New("reading the agent's CPU time: too few fields")
	}
	ticks := 0
	for _, field := range fields[11:15] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("reading the agent's CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / ticksPerSecond, nil
}

// residentMemory is VmRSS of /proc/PID/status.
func residentMemory(pid int) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("reading the agent's memory: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		var kib int
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("reading the agent's memory: no VmRSS")
}

//go:build linux

// The data of the machine, without which no figure means anything.

package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// fact is one line of the machine's data.
type fact struct{ name, value string }

func readMachine(ctx context.Context, guard string) ([]fact, error) {
	cpu, err := firstValue("/proc/cpuinfo", "model name")
	if err != nil {
		return nil, err
	}
	memory, err := firstValue("/proc/meminfo", "MemTotal")
	if err != nil {
		return nil, err
	}
	var kib int
	if _, err := fmt.Sscanf(memory, "%d kB", &kib); err != nil {
		return nil, fmt.Errorf("reading the size of the memory: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("reading the kernel's version: %w", err)
	}
	facts := []fact{
		{"date", time.Now().UTC().Format(time.DateOnly)},
		{"CPU", fmt.Sprintf("%s, %d cores", cmp.Or(cpu, runtime.GOARCH), runtime.NumCPU())},
		{"memory", fmt.Sprintf("%.1f GiB", float64(kib)/(1<<20))},
		{"kernel", unix.ByteSliceToString(uts.Release[:])},
	}
	for _, backend := range backends {
		out, err := exec.CommandContext(ctx, "iptables-"+string(backend), "--version").Output()
		if err != nil {
			return nil, fmt.Errorf("asking for the version of iptables: %w", err)
		}
		facts = append(facts, fact{"iptables-" + string(backend), strings.TrimSpace(string(out))})
	}
	out, err := exec.CommandContext(ctx, guard, "version").Output()
	if err != nil {
		return nil, fmt.Errorf("asking for the version of the guard: %w", err)
	}
	return append(facts, fact{"guard", strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", ", ")}), nil
}

// firstValue finds the first "key: value" of a file; the value is empty if there is none, as for the CPU's name on arm64.
func firstValue(file, key string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("reading the machine's data: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, value, _ := strings.Cut(lines.Text(), ":"); strings.TrimSpace(name) == key {
			return strings.TrimSpace(value), nil
		}
	}
	return "", nil
}

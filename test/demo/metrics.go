//go:build linux

// The guard's metrics, before and after.

package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// metrics is a value for each series, labels included.
type metrics map[string]float64

func (d *demonstration) scrape(ctx context.Context) (metrics, error) {
	text, err := d.node.Host().Get(ctx, "http://"+metricsAddress+"/metrics")
	if err != nil {
		return nil, fmt.Errorf("reading the metrics: %w", err)
	}
	found := make(metrics)
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		end := strings.LastIndexByte(line, ' ')
		if !strings.HasPrefix(line, "imds_guard_") || end < 0 {
			continue
		}
		value, err := strconv.ParseFloat(line[end+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("reading the metrics: %q: %w", line, err)
		}
		found[line[:end]] = value
	}
	return found, nil
}

// changes lists the series that differ, but for histogram buckets and timestamps, which tell a person nothing.
func changes(before, after metrics) []string {
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if before[name] == after[name] || strings.Contains(name, "_bucket{") || strings.Contains(name, "_timestamp_") {
			continue
		}
		lines = append(lines, fmt.Sprintf("%s  %.6g → %.6g", name, before[name], after[name]))
	}
	return lines
}

// sum adds the series of one metric whose labels contain the given one, all of them for "".
func (m metrics) sum(name, label string) (total float64) {
	for series, value := range m {
		if strings.HasPrefix(series, name+"{") && strings.Contains(series, label) {
			total += value
		}
	}
	return total
}

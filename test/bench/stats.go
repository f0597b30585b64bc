//go:build linux

// The few statistics that the figures need.

package main

import (
	"cmp"
	"slices"
)

// quantile is the smallest value that at least the share q of the values do not exceed (the nearest rank), so always one
// that was measured. There must be a value.
func quantile[T cmp.Ordered](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	rank := int(q * float64(len(sorted)))
	if float64(rank) < q*float64(len(sorted)) {
		rank++
	}
	return sorted[max(rank, 1)-1]
}

func median[T cmp.Ordered](values []T) T { return quantile(values, 0.5) }

func p99[T cmp.Ordered](values []T) T { return quantile(values, 0.99) }

//go:build linux

// The report: one table for the terminal and for the file.

package main

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// row is one line of the table. goal and met are empty where there is no goal.
type row struct{ what, goal, result, met string }

// result is what measuring a figure gave, and how it was done.
type result struct {
	how  string
	rows []row
}

// section is a figure in the report.
type section struct {
	title string
	result
}

func verdict(met bool) string {
	if met {
		return "yes"
	}
	return "**missed**"
}

func milliseconds(d time.Duration) string {
	if d%time.Millisecond == 0 {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

func familyName(f imds.Family) string {
	if f == imds.IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// table is all rows, as Markdown that is readable as it is.
func table(sections []section) string {
	cells := [][]string{{"figure", "case", "goal", "result", "goal met?"}}
	for _, s := range sections {
		for _, r := range s.rows {
			cells = append(cells, []string{s.title, r.what, cmp.Or(r.goal, "–"), r.result, cmp.Or(r.met, "–")})
		}
	}
	widths := make([]int, len(cells[0]))
	for _, line := range cells {
		for i, cell := range line {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for n, line := range cells {
		for i, cell := range line {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, width := range widths {
				b.WriteString("|" + strings.Repeat("-", width+2))
			}
			b.WriteString("|\n")
		}
	}
	return b.String()
}

// document is the whole report.
func document(machine []fact, sections []section) string {
	var b strings.Builder
	b.WriteString("# Benchmarks\n\nWritten by `make bench`, on nodes made of network namespaces with real veths, forwarding and " +
		"iptables. Don't edit.\n\n| | |\n|---|---|\n")
	for _, f := range machine {
		fmt.Fprintf(&b, "| %s | %s |\n", f.name, f.value)
	}
	fmt.Fprintf(&b, "\n%s\nMedian and p99 are values that were measured (the nearest rank).\n\n## How it was measured\n", table(sections))
	for _, s := range sections {
		fmt.Fprintf(&b, "\n**%s.** %s\n", s.title, s.how)
	}
	return b.String()
}

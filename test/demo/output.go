//go:build linux

// What the demo looks like.

package main

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	bold   = "1"
	red    = "1;31"
	green  = "32"
	yellow = "33"
	faint  = "2"
)

// printer prints the demo, with colours on a terminal.
type printer struct {
	w       *os.File
	colours bool
	steps   int
}

func newPrinter(w *os.File) *printer {
	_, err := unix.IoctlGetTermios(int(w.Fd()), unix.TCGETS)
	return &printer{w: w, colours: err == nil && os.Getenv("NO_COLOR") == ""}
}

func (p *printer) paint(colour, s string) string {
	if !p.colours {
		return s
	}
	return "\x1b[" + colour + "m" + s + "\x1b[0m"
}

// step begins the next step.
func (p *printer) step(title string) {
	p.steps++
	fmt.Fprintf(p.w, "\n%s\n", p.paint(bold, fmt.Sprintf("%d. %s", p.steps, title)))
}

// bad is something that happens and should not.
func (p *printer) bad(format string, args ...any) { p.line(red, "!", format, args...) }

// good is something that has been proved.
func (p *printer) good(format string, args ...any) { p.line(green, "✓", format, args...) }

// done is something that the demo did.
func (p *printer) done(format string, args ...any) { p.line(yellow, "$", format, args...) }

func (p *printer) line(colour, mark, format string, args ...any) {
	fmt.Fprintf(p.w, "   %s %s\n", p.paint(colour, mark), fmt.Sprintf(format, args...))
}

// quote prints somebody else's output.
func (p *printer) quote(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintf(p.w, "     %s\n", p.paint(faint, strings.TrimRight(line, "\n")))
	}
}

func (p *printer) success(format string, args ...any) {
	fmt.Fprintf(p.w, "\n%s\n", p.paint(green, fmt.Sprintf(format, args...)))
}

func (p *printer) failure(err error) {
	where := "before the first step"
	if p.steps > 0 {
		where = fmt.Sprintf("in step %d", p.steps)
	}
	fmt.Fprintf(p.w, "\n%s\n", p.paint(red, fmt.Sprintf("FAILED %s: %v", where, err)))
}

// Reports as text for people.

package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Limits on how much of a long value is written: a node can send any amount.
const (
	maxRunes    = 300
	maxRequests = 20
	maxCommands = 20
	maxNodes    = 10
)

// Printable makes text from a pod, a node or a server safe for a terminal: text with unprintable characters, or that could be
// mistaken for a quoted string, is quoted as in Go, and very long text is cut.
func Printable(text string) string {
	printable := utf8.ValidString(text) && !strings.HasPrefix(text, `"`)
	for _, r := range text {
		printable = printable && strconv.IsPrint(r)
	}
	if !printable {
		text = strconv.Quote(text)
	}
	if utf8.RuneCountInString(text) > maxRunes {
		text = string([]rune(text)[:maxRunes]) + "…"
	}
	return text
}

// WriteText writes who asks, from the nodes and the result of Merge: a table in which each line is followed by what the
// workload asked for and what to do about it.
func WriteText(w io.Writer, nodes []Node, workloads []Workload) error {
	var out bytes.Buffer
	fmt.Fprintln(&out, counted(nodes))
	writeIncomplete(&out, nodes)
	switch {
	case len(nodes) == 0:
	case len(workloads) == 0:
		fmt.Fprintln(&out, "No attempts were counted.")
	default:
		fmt.Fprintln(&out)
		writeWorkloads(&out, workloads)
	}
	_, err := w.Write(out.Bytes())
	return err
}

// counted says on how many nodes attempts were counted, and since when.
func counted(nodes []Node) string {
	if len(nodes) == 0 {
		return "No node answered, so nothing is known."
	}
	where := "on " + count(len(nodes), "node")
	var begun []time.Time
	for _, n := range nodes {
		if !n.Since.IsZero() {
			begun = append(begun, n.Since)
		}
	}
	if len(begun) == 0 {
		return "Nothing was counted " + where + "."
	}
	first, last := slices.MinFunc(begun, time.Time.Compare), slices.MaxFunc(begun, time.Time.Compare)
	if first.Equal(last) && len(begun) == len(nodes) {
		return fmt.Sprintf("Counted %s since %s.", where, at(last))
	}
	return fmt.Sprintf("Counted %s, on all of them since %s.", where, at(last))
}

// writeIncomplete writes what is missing, listing together the nodes with the same reason.
func writeIncomplete(w io.Writer, nodes []Node) {
	var reasons []string
	affected := map[string][]string{}
	for _, n := range nodes {
		if n.Incomplete == "" {
			continue
		}
		if affected[n.Incomplete] == nil {
			reasons = append(reasons, n.Incomplete)
		}
		affected[n.Incomplete] = append(affected[n.Incomplete], n.Node)
	}
	for _, why := range reasons {
		fmt.Fprintf(w, "Incomplete on %s: %s\n", list(affected[why], maxNodes), Printable(why))
	}
}

// writeWorkloads aligns the table's lines first, because the text below each of them would upset the columns.
func writeWorkloads(w io.Writer, workloads []Workload) {
	rows := make([][]string, 0, len(workloads))
	for _, l := range workloads {
		rows = append(rows, []string{
			Printable(l.Namespace), title(l), strconv.Itoa(l.Pods), strconv.FormatUint(l.Attempts(), 10), verdict(l), at(l.Last),
			documents(l.Requests),
		})
	}
	lines := aligned([]string{"NAMESPACE", "WORKLOAD", "PODS", "ATTEMPTS", "VERDICT", "LAST", "ASKED-FOR"}, rows)
	fmt.Fprintln(w, lines[0])
	for i, l := range workloads {
		fmt.Fprintln(w, lines[i+1])
		for _, r := range l.Requests[:min(len(l.Requests), maxRequests)] {
			fmt.Fprintf(w, "    %s\n", describe(r))
		}
		if more := len(l.Requests) - maxRequests; more > 0 {
			fmt.Fprintf(w, "    and %d more\n", more)
		}
		if len(l.Commands) > 0 {
			fmt.Fprintf(w, "    by %s\n", list(l.Commands, maxCommands))
		}
		fmt.Fprintf(w, "    %s\n", l.Advice())
	}
}

// title returns the workload's kind and name.
func title(w Workload) string {
	text := Printable(w.Kind + "/" + w.Name)
	switch {
	case w.Kind == "" && w.Name == "":
		text = "unnamed pods"
	case w.Kind == "":
		text = "unknown pod " + Printable(w.Name)
	}
	if w.HostNetwork {
		text += " (hostNetwork)"
	}
	return text
}

// verdict returns what became of the attempts.
func verdict(w Workload) string {
	switch {
	case w.Audited == 0:
		return "blocked"
	case w.Blocked == 0:
		return "audited"
	}
	return fmt.Sprintf("%d blocked, %d audited", w.Blocked, w.Audited)
}

// documents lists the kinds of document, each once.
func documents(requests []Request) string {
	var kinds []string
	for _, r := range requests {
		if !slices.Contains(kinds, r.Document) {
			kinds = append(kinds, r.Document)
		}
	}
	if len(kinds) == 0 {
		return "not seen"
	}
	return list(kinds, maxRequests)
}

func describe(r Request) string {
	parts := []string{Printable(r.Document), Printable(r.Version)}
	if r.Agent != "" {
		parts = append(parts, Printable(r.Agent))
	}
	times := strconv.FormatUint(r.Count, 10) + " times"
	if r.Count == 1 {
		times = "once"
	}
	return strings.Join(append(parts, times), ", ")
}

// WriteStatus writes a line for each node that says whether it is protected, and by which layers; if something is wrong, a
// second line says what.
func WriteStatus(w io.Writer, nodes []Node) error {
	rows := make([][]string, 0, len(nodes))
	protected := 0
	for _, n := range nodes {
		if n.Protected {
			protected++
		}
		rows = append(rows, []string{
			Printable(n.Node), yesNo(n.Protected), yesNo(n.Degraded), Printable(n.Mode), Printable(n.Version), layers(n.Layers),
		})
	}
	lines := aligned([]string{"NODE", "PROTECTED", "DEGRADED", "MODE", "VERSION", "LAYERS"}, rows)
	for i, n := range nodes {
		if n.Condition != "" && (n.Degraded || !n.Protected) {
			lines[i+1] += "\n    " + Printable(n.Condition)
		}
	}
	_, err := fmt.Fprintf(w, "%s\n\n%d of %s protected.\n", strings.Join(lines, "\n"), protected, count(len(nodes), "node"))
	return err
}

// layers formats the layers' states, such as "iptables: enforced; cgroup: enforced (ipv4), missing (ipv6)". Families are named
// only where they differ.
func layers(all []Layer) string {
	type states struct {
		names    []string
		families map[string][]imds.Family
	}
	var names []string
	byName := map[string]*states{}
	for _, l := range all {
		s := byName[l.Layer]
		if s == nil {
			s = &states{families: map[string][]imds.Family{}}
			byName[l.Layer], names = s, append(names, l.Layer)
		}
		if s.families[l.State] == nil {
			s.names = append(s.names, l.State)
		}
		s.families[l.State] = append(s.families[l.State], l.Family)
	}
	var texts []string
	for _, name := range names {
		s := byName[name]
		var parts []string
		for _, state := range s.names {
			part := Printable(state)
			if len(s.names) > 1 {
				part += " (" + list(s.families[state], maxNodes) + ")"
			}
			parts = append(parts, part)
		}
		texts = append(texts, Printable(name)+": "+strings.Join(parts, ", "))
	}
	return strings.Join(texts, "; ")
}

// aligned formats rows as lines with aligned columns. Cells must not contain tabs or line breaks.
func aligned(header []string, rows [][]string) []string {
	var out bytes.Buffer
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	for _, row := range append([][]string{header}, rows...) {
		fmt.Fprintln(table, strings.Join(row, "\t"))
	}
	table.Flush() // into memory: it can't fail
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// list joins names from elsewhere with commas, and says how many were left out.
func list[T ~string](names []T, limit int) string {
	var texts []string
	for _, n := range names[:min(len(names), limit)] {
		texts = append(texts, Printable(string(n)))
	}
	text := strings.Join(texts, ", ")
	if more := len(names) - limit; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func at(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func count(n int, word string) string {
	if n != 1 {
		word += "s"
	}
	return fmt.Sprintf("%d %s", n, word)
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

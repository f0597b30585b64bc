// Reading FORWARD with iptables, and deciding how much of the output to trust.

package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// list reads and parses iptables' listing of the chain.
func list(f imds.Family, lines func() ([]string, error)) (Chain, error) {
	text, err := lines()
	if err != nil {
		return Chain{}, err
	}
	failed := func(err error) (Chain, error) {
		return Chain{}, &CommandError{Family: f, Operation: OpList, Reason: ReasonOther, Err: err}
	}
	if len(text) == 0 || !strings.HasPrefix(text[0], "-P "+chainName+" ") {
		return failed(fmt.Errorf("%s is listed without a policy, as if it were not a base chain", chainName))
	}
	chain := Chain{Lines: make([]Line, 0, len(text)-1)}
	for i := 1; i < len(text); i++ {
		rule := text[i]
		// A comment may contain line breaks.
		for _, err := tokenize(rule); err != nil && i+1 < len(text); _, err = tokenize(rule) {
			i++
			rule += "\n" + text[i]
		}
		line, err := ParseLine(rule)
		if err != nil && !strings.HasPrefix(rule, "-A "+chainName+" ") {
			return failed(err)
		}
		if err != nil {
			line = Line{Text: rule, Odd: true} // a foreign rule that is not understood
		}
		chain.Lines = append(chain.Lines, line)
	}
	return chain, nil
}

// mark marks the lines in which iptables-nft can't be trusted, according to what the kernel has in the same places.
func (c *Chain) mark(k kernelChain) {
	c.Native = true
	for _, rule := range k.Rules() {
		l := &c.Lines[rule.Position]
		l.Odd, l.Jump = l.Odd || rule.Odd, rule.Jump
		l.Exact = l.Exact && !rule.Odd && !rule.Jump
	}
}

// lookalikes reports whether a line is printed like one of these rules but isn't one: `iptables -D` could mistake it for one.
func (c Chain) lookalikes(of []Rule) bool {
	return slices.ContainsFunc(c.Lines, func(l Line) bool { return (l.Odd || l.Jump) && slices.Contains(of, l.Rule) })
}

// shows reports whether the kernel has a rule with the endpoint's address wherever a line is printed as one of these rules. If
// not, the two lists are from different moments.
func (k kernelChain) shows(c Chain, rules []Rule) bool {
	names := map[int]bool{}
	for _, rule := range k.Rules() {
		names[rule.Position] = rule.Names
	}
	for i, l := range c.Lines {
		if l.Exact && slices.Contains(rules, l.Rule) && !names[i] {
			return false
		}
	}
	return true
}

// named returns the lines that name the endpoint but are none of these rules, each by its text and a sequence number among
// equal ones. A rule that is understood and stops nothing can't be one of ours in disguise.
func (c Chain) named(of []Rule, endpoint string) map[string]bool {
	named, times := map[string]bool{}, map[string]int{}
	ours := func(l Line) bool { return l.Exact && slices.Contains(of, l.Rule) }
	for _, l := range c.Lines {
		stops := l.Odd || l.Rule.Target == "DROP" || l.Rule.Target == "REJECT" || l.Rule.Target == ""
		if stops && strings.Contains(l.Text, endpoint) && !ours(l) {
			times[l.Text]++
			named[fmt.Sprintf("%s #%d", l.Text, times[l.Text])] = true
		}
	}
	return named
}

// legacyListing is what iptables printed of a legacy chain, together with the size that the kernel reports for it.
type legacyListing struct {
	text   string
	extent int // in bytes, from the kernel's summary of the table; unmeasured if that is not available
	// hidden is how often the chain has grown while iptables printed the same as before: by rules that it does not print.
	hidden int
}

const unmeasured = -1

// next returns the listing that follows this one. inserted says that a rule was inserted in between: if the size is not
// available, that rule counts as one that is not printed.
func (l legacyListing) next(c Chain, extent int, inserted bool) legacyListing {
	var text strings.Builder
	for _, line := range c.Lines {
		text.WriteString(line.Text + "\n")
	}
	n := legacyListing{text.String(), extent, l.hidden}
	same := n.text == l.text
	switch {
	case extent == unmeasured || l.extent == unmeasured:
		if same && inserted {
			n.hidden++
		}
	case extent < l.extent:
		n.hidden = 0 // something was removed
	case same && extent > l.extent:
		n.hidden++
	}
	return n
}

// numberedKeys returns n keys for inserts.read.
func numberedKeys(name string, n int) map[string]bool {
	keys := map[string]bool{}
	for i := range n {
		keys[fmt.Sprintf("%s #%d", name, i+1)] = true
	}
	return keys
}

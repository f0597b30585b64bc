// The bound on inserts.
package rules

import "fmt"

const (
	// maxGrown is how many inserts may make the chain longer without the rule being seen in it.
	maxGrown = 3
	// maxUnseen is how many inserts in a row may not be seen at all. Somebody who deletes the rule within the
	// millisecond before it is read back looks like this too, and is given this many chances to be slower.
	maxUnseen = 100
)

// inserts counts the inserts that no reading shows. Should iptables fail to print, or we to recognise, a rule that is
// there (iptables -C did so in 1.8.10, cloudnativelabs/kube-router#1676, and nodes went down under the duplicates),
// every look would find it missing and insert one more. A reading that shows the rule ends the count.
type inserts struct {
	pending       bool // an insert was made after the last reading
	lines         int  // length of the chain in the last reading, or unlisted
	grown, unseen int
}

// unlisted stands for the length of a chain that iptables did not list.
const unlisted = -1

// made notes an insert.
func (i *inserts) made() { i.pending = true }

// read notes a reading; the error says that the reading can't be right.
func (i *inserts) read(seen bool, lines int) error {
	if seen {
		*i = inserts{lines: lines}
		return nil
	}
	if i.pending {
		i.unseen++
		if i.lines != unlisted && lines > i.lines {
			i.grown++
		}
	}
	i.pending, i.lines = false, lines
	return i.allowed()
}

// allowed reports by an error that no more inserts may be made.
func (i *inserts) allowed() error {
	if i.grown < maxGrown && i.unseen < maxUnseen {
		return nil
	}
	return fmt.Errorf("reading back inserted rules: %d inserts were accepted and none is listed by iptables; "+
		"no more are made until one is", i.unseen)
}

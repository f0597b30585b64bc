// The bound on inserts.
package rules

import (
	"fmt"
	"time"
)

const (
	// maxGrown is how many inserts may make the kernel's chain longer without iptables showing the rule in it.
	maxGrown = 3
	// firstPause is the pause before the next one; it doubles each time, so that there are less than 20 in a year.
	firstPause = time.Minute
)

// inserts counts the inserts that stay in the kernel and that no reading shows. Should iptables fail to print, or we to
// recognise, a rule that is there (iptables -C did so in 1.8.10, cloudnativelabs/kube-router#1676, and nodes went down under
// the duplicates), every look would find it missing and insert one more. It is the kernel's own count of rules that tells
// this from somebody who deletes the rule before it is read back, against whom the inserts must go on.
type inserts struct {
	pending   bool // an insert was made, and nothing has been read since
	before    int  // the kernel's count before it
	grown     int
	notBefore time.Time
}

// sight is what a reading says of the rules.
type sight int

const (
	unseen sight = iota // nothing could be read
	lacking
	shown
)

// uncounted stands for a count that the kernel did not give.
const uncounted = -1

// made notes an insert, and how many rules the kernel had before.
func (i *inserts) made(before int) { i.pending, i.before = true, before }

// read notes a reading, with the kernel's count of rules after it if that matters. The error says that the reading can't be
// right.
func (i *inserts) read(s sight, count func() int, now time.Time) error {
	switch {
	case s == shown:
		*i = inserts{}
	case s == lacking && i.pending:
		i.pending = false
		if after := count(); after == uncounted || i.before == uncounted || after > i.before {
			i.grown++
			if i.grown >= maxGrown {
				i.notBefore = now.Add(firstPause << min(i.grown-maxGrown, 20))
			}
		}
	}
	return i.allowed(now)
}

// allowed reports by an error that no insert may be made now.
func (i *inserts) allowed(now time.Time) error {
	if !now.Before(i.notBefore) {
		return nil
	}
	return fmt.Errorf("reading back inserted rules: the kernel took %d, and iptables lists none of them; no more are made "+
		"until it does, but for a single try in %s", i.grown, i.notBefore.Sub(now).Round(time.Second))
}

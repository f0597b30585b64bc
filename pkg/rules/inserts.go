// The bound on inserts.

package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// maxUnrecognised is how many rules that were inserted may be in the chain without being recognised.
	maxUnrecognised = 3
	// firstPause is the pause before the next one; it doubles with each more, so that there are about thirty in a year.
	firstPause = time.Second
)

// errUnrecognised is why no rule is inserted although none is seen. It is no failed command.
var errUnrecognised = errors.New("inserted rules are in the chain but are not recognised there")

// inserts counts the rules that were inserted, are in the kernel, and are not recognised there. Should iptables
// fail to print, or we to recognise, a rule that is there (iptables -C did so in 1.8.10, cloudnativelabs/kube-router#1676,
// and nodes went down under the duplicates), every look would find it missing and insert one more.
//
// They are told from somebody else's doings by what they can't lack: such a rule names the endpoint, came with the insert,
// and is still there at the next one. In a fight, where somebody flushes or deletes rules, what came goes again, and the
// inserts go on however many rules of his own he adds. And if such a rule comes without an insert, somebody else writes
// them, and those counted so far may have been his as well.
type inserts struct {
	pending   int             // so many rules were inserted, and nothing has been read since
	anew      bool            // those are in a form that has not been read yet
	before    map[string]bool // the unrecognised rules that name the endpoint, at the last reading
	stayed    []arrival
	notBefore time.Time
}

// arrival is what came with one insert of so many rules, as far as it is still there.
type arrival struct {
	inserted int
	rules    map[string]bool
}

// made notes the insert of so many rules: anew by a command, or else as they had been recognised before.
func (i *inserts) made(rules int, anew bool) { i.pending, i.anew = rules, anew }

// open reports whether there may be a rule in the chain that was inserted and not recognised.
func (i *inserts) open() bool { return i.pending > 0 && i.anew || len(i.stayed) > 0 }

// read notes a reading: whether the rules were recognised, and which rules that name the endpoint were not, each by what
// tells it from all others. The error says that no more inserts may be made now, and pause for how long.
func (i *inserts) read(recognised bool, named map[string]bool, now time.Time) (pause time.Duration, err error) {
	if recognised {
		*i = inserts{before: named}
		return 0, nil
	}
	came := map[string]bool{}
	for rule := range named {
		if !i.before[rule] {
			came[rule] = true
		}
	}
	if len(came) > 0 && i.pending == 0 {
		i.stayed = nil
	}
	before := i.unrecognised(named)
	if len(came) > 0 && i.pending > 0 {
		i.stayed = append(i.stayed, arrival{i.pending, came})
	}
	i.pending, i.before = 0, named
	n := i.unrecognised(named)
	switch {
	case n < maxUnrecognised:
		i.notBefore = time.Time{}
	case n > before:
		i.notBefore = now.Add(firstPause << min(n-maxUnrecognised, 24))
	}
	if pause = i.notBefore.Sub(now); pause > 0 {
		return pause, fmt.Errorf("%w: %d of them, neither in what iptables prints nor in what the kernel lists; the next try is in %s",
			errUnrecognised, n, pause.Round(time.Second))
	}
	return 0, nil
}

// unrecognised counts what was inserted and may be among the rules that are there now, and forgets what is not.
func (i *inserts) unrecognised(named map[string]bool) (n int) {
	i.stayed = slices.DeleteFunc(i.stayed, func(a arrival) bool {
		maps.DeleteFunc(a.rules, func(rule string, _ bool) bool { return !named[rule] })
		n += min(a.inserted, len(a.rules))
		return len(a.rules) == 0
	})
	return n
}

// Limiting inserts.

package rules

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

const (
	// maxUnrecognised is how many inserted rules may be in the chain without being recognised.
	maxUnrecognised = 3
	// firstPause is the pause before the next insert. It doubles each time, so that there are about thirty in a year.
	firstPause = time.Second
)

// errUnrecognised is why no rule is inserted although none is seen. It is not a failed command.
var errUnrecognised = errors.New("inserted rules are in the chain but are not recognised there")

// inserts counts the rules that were inserted and are in the kernel, but are not recognised there. If iptables failed to
// print, or we failed to recognise, an existing rule (as iptables -C did in 1.8.10, cloudnativelabs/kube-router#1676, where
// nodes went down under the duplicates), every look would find it missing and insert one more.
//
// Such a rule is told from other processes' rules by three properties: it names the endpoint, it appeared with the insert,
// and it is still there at the next one. In a fight, where something flushes or deletes rules, what appeared goes away
// again, so inserting continues however many rules the other side adds. And if such a rule appears without an insert,
// something else writes them, and those counted so far may not have been ours either.
type inserts struct {
	pending   int             // how many rules were inserted since the last reading
	anew      bool            // they were inserted in a form that has not been read yet
	before    map[string]bool // the unrecognised rules that name the endpoint, at the last reading
	stayed    []arrival
	notBefore time.Time
}

// arrival is the set of rules that appeared with one insert and are still there, and how many were inserted.
type arrival struct {
	inserted int
	rules    map[string]bool
}

// made records an insert of rules: anew if by a command, otherwise in the form in which they had been recognised before.
func (i *inserts) made(rules int, anew bool) { i.pending, i.anew = rules, anew }

// open reports whether the chain may contain a rule that was inserted and not recognised.
func (i *inserts) open() bool { return i.pending > 0 && i.anew || len(i.stayed) > 0 }

// read records a reading: whether the rules were recognised, and which rules that name the endpoint were not, each by a unique
// key. The error says that nothing may be inserted now, and pause says for how long.
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

// unrecognised counts the inserted rules that may be among those there now, and forgets the others.
func (i *inserts) unrecognised(named map[string]bool) (n int) {
	i.stayed = slices.DeleteFunc(i.stayed, func(a arrival) bool {
		maps.DeleteFunc(a.rules, func(rule string, _ bool) bool { return !named[rule] })
		n += min(a.inserted, len(a.rules))
		return len(a.rules) == 0
	})
	return n
}

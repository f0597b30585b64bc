package rules

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// exited is a command that has ended with a status, below zero by a signal, and what it said.
type exited struct {
	status int
	text   string
}

func (e exited) Error() string   { return e.text }
func (e exited) ExitStatus() int { return e.status }

// The text alone proves nothing, and neither does the exit status.
func TestReasonOf(t *testing.T) {
	const (
		lock   = "Another app is currently holding the xtables lock. Perhaps you want to use the -w option?"
		native = "iptables v1.8.9 (nf_tables): table `filter' is incompatible, use 'nft' tool."
		newer  = "Parsing nftables rule failed"
	)
	for _, c := range []struct {
		err    error
		reason Reason
	}{
		{exited{4, lock}, ReasonLock},
		{exited{4, "Out of memory"}, ReasonOther},
		{exited{1, lock}, ReasonOther},
		{exited{1, native}, ReasonIncompatible},
		{exited{3, native}, ReasonOther},
		{exited{3, newer}, ReasonIncompatible},
		{exited{1, newer}, ReasonOther},
		{exited{4, native}, ReasonOther},
		{exited{1, "Bad rule (does a matching rule exist in that chain?)"}, ReasonOther},
		{exited{0, ""}, ReasonOther},
		{exited{-1, lock}, ReasonExec},
		{fmt.Errorf("%w: %w", errHung, exited{4, lock}), ReasonExec},
		{errors.New(lock), ReasonExec},
		{fmt.Errorf("wrapped: %w", exited{4, lock}), ReasonLock},
	} {
		if got := reasonOf(c.err); got != c.reason {
			t.Errorf("%v: %s, want %s", c.err, got, c.reason)
		}
	}
}

// An error is one line, whatever the command wrote, and hints at what a signal may mean, unless it was ours.
func TestCommandErrorForAPerson(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{exited{1, "a\nb\n"}, "running iptables to list ipv6 rules: a; b"},
		{exited{-1, "killed"}, "running iptables to list ipv6 rules: killed (killed by a signal; out of memory?)"},
		{fmt.Errorf("%w: %w", errHung, exited{-1, "killed"}), "running iptables to list ipv6 rules: the command hung and was killed: killed"},
		{exited{0, "it says nothing"}, "running iptables to list ipv6 rules: it says nothing"},
		{errors.New("not found"), "running iptables to list ipv6 rules: not found"},
	} {
		err := &CommandError{Family: imds.IPv6, Operation: OpList, Reason: ReasonOther, Err: c.err}
		if got := err.Error(); got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestWithoutNetfilter(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errBroken, false},
		{unix.EPERM, false},
		{fmt.Errorf("reading: %w", unix.EAFNOSUPPORT), true},
		{unix.EPROTONOSUPPORT, true},
		{unix.EOPNOTSUPP, true},
		{exited{3, "can't initialize ip6tables table `filter': Table does not exist (do you need to insmod?)"}, true},
		{exited{1, "Could not fetch rule set generation id: Protocol not supported"}, true},
		{exited{1, "Address family not supported by protocol"}, true},
		{exited{1, "Permission denied"}, false},
		{exited{0, "Protocol not supported"}, false},
		{exited{-1, "Protocol not supported"}, false},
		{errors.New("Protocol not supported"), false},
	} {
		if got := withoutNetfilter(c.err); got != c.want {
			t.Errorf("%v: %t", c.err, got)
		}
	}
}

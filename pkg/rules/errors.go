// Errors of iptables commands, classified into the few kinds that someone on call has to distinguish.

package rules

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Operation is what a command was meant to do, as a metric label.
type Operation string

const (
	OpVersion Operation = "version"
	OpList    Operation = "list"
	OpInsert  Operation = "insert"
	OpRestore Operation = "restore"
)

// Reason is why a command failed, as a metric label.
type Reason string

const (
	// ReasonLock: another process held the xtables lock for as long as we waited.
	ReasonLock Reason = "lock"
	// ReasonIncompatible: iptables-nft can't show the chain, because it contains a native nftables rule or one from a newer
	// iptables.
	ReasonIncompatible Reason = "incompatible"
	// ReasonExec: the command is missing, can't be run, or hung and was killed.
	ReasonExec Reason = "exec"
	// ReasonOther: everything else; the error says more.
	ReasonOther Reason = "other"
)

// Operations and Reasons list every value.
var (
	Operations = []Operation{OpVersion, OpList, OpInsert, OpRestore}
	Reasons    = []Reason{ReasonLock, ReasonIncompatible, ReasonExec, ReasonOther}
)

// CommandError is a failed iptables command.
type CommandError struct {
	Family    imds.Family
	Operation Operation
	Reason    Reason
	Err       error
}

// Error returns one line, whatever the command wrote.
func (e *CommandError) Error() string {
	hint := ""
	var exit exitError
	if errors.As(e.Err, &exit) && exit.ExitStatus() < 0 && !errors.Is(e.Err, errHung) {
		hint = " (killed by a signal; out of memory?)"
	}
	said := strings.Join(strings.FieldsFunc(e.Err.Error(), func(r rune) bool { return r == '\n' }), "; ")
	return fmt.Sprintf("running iptables to %s %s rules: %s%s", e.Operation, e.Family, said, hint)
}

func (e *CommandError) Unwrap() error { return e.Err }

// errHung is the cause for a command that hung and was killed.
var errHung = errors.New("the command hung and was killed")

// exitError is the error of a failed command: *iptables.Error from go-iptables, or our own *restoreError.
type exitError interface {
	error
	ExitStatus() int
}

// reasonOf classifies an error. The text alone proves nothing, since it quotes rules and comments: the exit status has to match
// too.
func reasonOf(err error) Reason {
	var exit exitError
	if errors.Is(err, errHung) || !errors.As(err, &exit) {
		return ReasonExec
	}
	text := exit.Error()
	switch status := exit.ExitStatus(); {
	case status < 0:
		return ReasonExec // ended by a signal
	case status == 4 && strings.Contains(text, "xtables lock"):
		return ReasonLock // RESOURCE_PROBLEM of include/xtables.h, which has other causes too
	case status == 1 && strings.Contains(text, "is incompatible, use 'nft' tool"),
		status == 3 && strings.Contains(text, "Parsing nftables rule failed"):
		return ReasonIncompatible
	}
	return ReasonOther
}

// withoutNetfilter reports whether an error says that the kernel has no netfilter for the family at all.
func withoutNetfilter(err error) bool {
	for _, errno := range []error{unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.EOPNOTSUPP} {
		if errors.Is(err, errno) {
			return true
		}
	}
	var exit exitError
	if !errors.As(err, &exit) || exit.ExitStatus() <= 0 {
		return false
	}
	for _, text := range []string{
		"Table does not exist (do you need to insmod?)", // legacy without ip6_tables
		"Protocol not supported",                        // nft without nf_tables
		"Address family not supported by protocol",
	} {
		if strings.Contains(exit.Error(), text) {
			return true
		}
	}
	return false
}

// Running commands: go-iptables for reads and single writes, iptables-restore for a move, each with a time limit.

package rules

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

const (
	// lockWait is how long a command waits for /run/xtables.lock, in seconds.
	lockWait = 5
	// commandTimeout is how long a command may take before it is killed. The slowest one seen took 2.5 s, with 50,000 foreign
	// rules in FORWARD itself, and a command may first wait for lockWait.
	commandTimeout = (lockWait + 5) * time.Second
)

// command runs iptables of one backend for one family.
type command struct {
	backend Backend
	family  imds.Family
	restore string
	ipt     *iptables.IPTables
}

// binaryName returns the name under which a backend's command is installed beside the other's, e.g. ip6tables-legacy.
func binaryName(b Backend, f imds.Family) string {
	name := "iptables-"
	if f == imds.IPv6 {
		name = "ip6tables-"
	}
	return name + string(b)
}

// newCommand finds a backend's command. It runs `--version` once, from which go-iptables picks its flags.
func newCommand(b Backend, f imds.Family) (*command, error) {
	name := binaryName(b, f)
	proto := iptables.ProtocolIPv4
	if f == imds.IPv6 {
		proto = iptables.ProtocolIPv6
	}
	c := &command{backend: b, family: f, restore: name + "-restore"}
	err := c.run(OpVersion, func() (err error) {
		c.ipt, err = iptables.New(iptables.Path(name), iptables.IPFamily(proto), iptables.Timeout(lockWait))
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// version returns the version of iptables, e.g. 1.8.9.
func (c *command) version() string {
	major, minor, patch := c.ipt.GetIptablesVersion()
	return fmt.Sprintf("%d.%d.%d", major, minor, patch)
}

// list returns the lines of FORWARD with counters, the policy first.
func (c *command) list() (lines []string, err error) {
	err = c.run(OpList, func() (err error) {
		lines, err = c.ipt.ListWithCounters(tableName, chainName)
		return err
	})
	return lines, err
}

// insert puts a rule at the top.
func (c *command) insert(r Rule) error {
	return c.run(OpInsert, func() error { return c.ipt.Insert(tableName, chainName, 1, r.Args()...) })
}

// replace deletes the given number of copies of each rule in remove and inserts the rules of top at the top, in order, in one
// transaction: there is no moment without them, and if a copy to be deleted is missing, nothing is done at all (both backends;
// iptables-restore commits a table as a whole).
func (c *command) replace(remove map[Rule]int, top []Rule) error {
	var input strings.Builder
	input.WriteString("*" + tableName + "\n")
	for rule, copies := range remove {
		deletion := "-D " + chainName + " " + strings.Join(rule.Args(), " ") + "\n"
		input.WriteString(strings.Repeat(deletion, copies))
	}
	for i, rule := range top {
		fmt.Fprintf(&input, "-I %s %d %s\n", chainName, i+1, strings.Join(rule.Args(), " "))
	}
	input.WriteString("COMMIT\n")

	return c.run(OpRestore, func() error {
		var stderr bytes.Buffer
		cmd := exec.Command(c.restore, "--wait", strconv.Itoa(lockWait), "--noflush")
		cmd.Stdin, cmd.Stderr = strings.NewReader(input.String()), &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return &restoreError{c.restore, exit, strings.TrimSpace(stderr.String())}
		}
		return err
	})
}

// run limits the time of one command and gives its error a type.
func (c *command) run(op Operation, f func() error) error {
	if err := limited(commandTimeout, f); err != nil {
		return &CommandError{Family: c.family, Operation: op, Reason: reasonOf(err), Err: err}
	}
	return nil
}

// restoreError is a failed iptables-restore, with its output.
type restoreError struct {
	name   string
	exit   *exec.ExitError
	stderr string
}

func (e *restoreError) Error() string {
	return fmt.Sprintf("running %s: %v: %s", e.name, e.exit, e.stderr)
}

// ExitStatus returns the exit status, -1 if a signal ended the command.
func (e *restoreError) ExitStatus() int { return e.exit.ExitCode() }

//go:build linux

// The two address families, and the rule in the kernel.

package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// family is all that differs between IPv4 and IPv6.
type family struct {
	name, tool   string
	ip           string // iproute2 for this family
	imds         string
	rule         string // as iptables prints it
	probeAddress string
}

func families(backend string) []family {
	return []family{
		{
			name: "IPv4", tool: "iptables-" + backend, ip: "ip -4", imds: testnode.IMDSv4,
			rule:         "-A FORWARD -d 169.254.169.254/32 -i eni+ -j DROP",
			probeAddress: net.JoinHostPort(testnode.IMDSv4, "9"),
		},
		{
			name: "IPv6", tool: "ip6tables-" + backend, ip: "ip -6", imds: testnode.IMDSv6,
			rule:         "-A FORWARD -d fd00:ec2::254/128 -i eni+ -j DROP",
			probeAddress: net.JoinHostPort(testnode.IMDSv6, "9"),
		},
	}
}

// iptables runs the family's tool on the node and returns what it prints.
func (d *demonstration) iptables(ctx context.Context, f family, args ...string) (string, error) {
	var out []byte
	err := d.node.Host().Do(func() (err error) {
		out, err = exec.CommandContext(ctx, f.tool, append([]string{"--wait"}, args...)...).CombinedOutput()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("running %s %s: %w: %s", f.tool, strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// onTop tells whether the rule is the first of FORWARD. Being there is not enough: an ACCEPT above it would win.
func (d *demonstration) onTop(ctx context.Context, f family) (bool, error) {
	first, err := d.iptables(ctx, f, "-S", "FORWARD", "1")
	return strings.TrimSpace(first) == f.rule, err
}

// waitOnTop looks again and again until the rule is the first of FORWARD, and returns when it was seen.
func (d *demonstration) waitOnTop(ctx context.Context, f family) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		switch ok, err := d.onTop(ctx, f); {
		case ctx.Err() != nil:
			return time.Time{}, fmt.Errorf("waiting for the %s rule to be on top of FORWARD: %w", f.name, ctx.Err())
		case err != nil:
			return time.Time{}, err
		case ok:
			return time.Now(), nil
		}
		time.Sleep(time.Millisecond) // leave the guard some of the processor
	}
}

// showRules prints what is in FORWARD.
func (d *demonstration) showRules(ctx context.Context, f family) error {
	rules, err := d.iptables(ctx, f, "-S", "FORWARD")
	if err != nil {
		return err
	}
	d.out.quote(rules)
	return nil
}

// showRoute prints the route layer, as iproute2 does.
func (d *demonstration) showRoute(ctx context.Context, f family) error {
	out, err := d.node.Command(ctx, "sh", "-c", fmt.Sprintf("%[1]s rule list table 169254; %[1]s route show table 169254", f.ip)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("listing the route layer: %w\n%s", err, out)
	}
	d.out.quote(string(out))
	return nil
}

//go:build linux

// Before anything is blocked: who asks, and what for.

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The cgroups of two pods' containers below the pods', and what they ask for, as the report calls it.
var asking = []struct{ cgroup, uid, call, document string }{
	{"burstable/pod%s/container", "11111111-1111-4111-8111-111111111111",
		"get-v2 Boto3/1.34.0@http://169.254.169.254/latest/meta-data/iam/security-credentials/baskinc-role", "credentials"},
	{"besteffort/pod%s/container", "22222222-2222-4222-8222-222222222222",
		"get-v2 aws-sdk-go-v2/1.30.0@http://169.254.169.254/latest/meta-data/placement/region", "region and placement"},
}

// stepAudit starts the guard in audit mode, in which the pods go on being served, and has it say who asks.
func (d *demonstration) stepAudit(ctx context.Context) error {
	if d.podsCgroup == "" {
		d.out.done("left out: this machine has no cgroup v2")
		return nil
	}
	if err := d.startGuard(ctx, "--mode", "audit"); err != nil {
		return err
	}
	for i, a := range asking {
		results, err := d.node.SocketCallsBy(fmt.Sprintf(a.cgroup, a.uid), d.pods[i].Namespace, a.call)
		if err != nil {
			return err
		}
		if !slices.Equal(results, []string{"200"}) {
			return fmt.Errorf("in audit mode a pod's request ends with %q", results)
		}
	}
	report, err := d.awaitReport(ctx)
	if err != nil {
		return err
	}
	d.out.done("imds-guard report")
	d.out.quote(report)
	d.out.good("both pods were served, and both are told of; on Kubernetes by their names instead of their UIDs")
	return d.guard.stop()
}

// awaitReport waits until the report has both pods with what they ask for: what was asked is counted a moment later.
func (d *demonstration) awaitReport(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		out, err := d.node.Command(ctx, d.opts.guard, "report").CombinedOutput()
		complete := err == nil
		for _, a := range asking {
			complete = complete && strings.Contains(string(out), a.uid) && strings.Contains(string(out), a.document)
		}
		if complete {
			return string(out), nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("waiting for the report to have both pods: %w (%v)\n%s", ctx.Err(), err, out)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

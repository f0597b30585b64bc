//go:build linux

// The demonstration, step by step.

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// demonstration is what the steps share.
type demonstration struct {
	opts     options
	out      *printer
	families []family

	node       *testnode.Node
	pods       []*testnode.Pod
	podsCgroup string // empty if the machine has no cgroup v2
	guard      *guard

	before, after metrics
	tamperings    int
}

// demo makes the node, takes the steps and removes everything.
func demo(ctx context.Context, opts options, out *printer) (err error) {
	d := &demonstration{opts: opts, out: out, families: families(opts.backend)}
	if d.node, err = testnode.New(); err != nil {
		return err
	}
	defer func() {
		if err != nil && d.guard != nil {
			err = fmt.Errorf("%w\nthe guard's log:\n%s", err, d.guard.log.Tail(40))
		}
		err = errors.Join(err, d.node.Close())
	}()
	for _, ifname := range []string{"eni0123456789a", "eni0123456789b"} {
		pod, err := d.node.AddPod(ifname)
		if err != nil {
			return err
		}
		d.pods = append(d.pods, pod)
	}
	if err := d.findCgroups(); err != nil {
		return err
	}
	if err := d.startMock(ctx, opts.imds); err != nil {
		return err
	}
	steps := []struct {
		title string
		take  func(context.Context) error
	}{
		{"A pod steals the node's credentials", d.stepSteal},
		{"In audit mode, imds-guard says who would miss it", d.stepAudit},
		{"imds-guard starts on the node, and enforces", d.stepStart},
		{"Pods are blocked, and nothing else is", d.stepBlocked},
		{"So is a pod in the node's own network, if that is asked for", d.stepHostNetwork},
		{"The guard proves it by packets of its own", d.stepProbe},
		{"Somebody flushes the chain", d.stepFlush},
		{"Somebody buries the rule under an ACCEPT", d.stepBury},
		{"The guard is killed", d.stepKill},
		{"What the guard's metrics made of it", d.stepMetrics},
		{"imds-guard cleanup", d.stepCleanup},
	}
	for _, s := range steps {
		out.step(s.title)
		if err := s.take(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demonstration) stepSteal(ctx context.Context) error {
	for _, f := range d.families {
		c, err := steal(ctx, d.pods[0].Namespace, f.imds)
		if err != nil {
			return err
		}
		d.out.bad("%s %s: role %s, AccessKeyId %s, SecretAccessKey %.4s…", f.name, f.imds, c.Role, c.AccessKeyID, c.SecretAccessKey)
	}
	if d.podsCgroup != "" {
		return d.inNodesNetwork("sent")
	}
	return nil
}

func (d *demonstration) stepStart(ctx context.Context) error {
	started := time.Now()
	if err := d.startGuard(ctx); err != nil {
		return err
	}
	d.out.good("ready after %s; the kernel's rules, as iptables prints them:", milliseconds(time.Since(started)))
	for _, f := range d.families {
		if ok, err := d.onTop(ctx, f); err != nil || !ok {
			return errors.Join(fmt.Errorf("the guard says that it is ready, but %q is not the first rule", f.rule), err)
		}
		if err := d.showRules(ctx, f); err != nil {
			return err
		}
	}
	d.out.good("and behind them a route into a sink, for what the node forwards to the endpoint from any interface:")
	for _, f := range d.families {
		if err := d.showRoute(ctx, f); err != nil {
			return err
		}
	}
	var err error
	d.before, err = d.scrape(ctx)
	return err
}

func (d *demonstration) stepBlocked(ctx context.Context) error {
	if err := d.proveBlocked(ctx); err != nil {
		return err
	}
	for _, f := range d.families {
		if _, err := steal(ctx, d.node.Host(), f.imds); err != nil {
			return fmt.Errorf("the node itself is not served: %w", err)
		}
	}
	d.out.good("the node itself still gets its credentials (IPv4 and IPv6)")
	for _, ip := range testnode.Neighbours {
		if _, err := d.pods[0].Get(ctx, "http://"+net.JoinHostPort(ip, "80")); err != nil {
			return fmt.Errorf("a neighbour of the endpoint is not served: %w", err)
		}
	}
	d.out.good("pods still reach its neighbours: %s", strings.Join(testnode.Neighbours, " "))
	return nil
}

func (d *demonstration) stepFlush(ctx context.Context) error {
	for _, f := range d.families {
		if err := d.tamper(ctx, f, "-F", "FORWARD"); err != nil {
			return err
		}
	}
	return d.proveBlocked(ctx)
}

func (d *demonstration) stepBury(ctx context.Context) error {
	for _, f := range d.families {
		if err := d.tamper(ctx, f, "-I", "FORWARD", "1", "-j", "ACCEPT"); err != nil {
			return err
		}
	}
	return d.proveBlocked(ctx)
}

func (d *demonstration) stepKill(ctx context.Context) error {
	var err error
	if d.after, err = d.scrape(ctx); err != nil {
		return err
	}
	if err := d.guard.kill(); err != nil {
		return err
	}
	d.out.done("kill -9")
	for _, f := range d.families {
		if ok, err := d.onTop(ctx, f); err != nil || !ok {
			return errors.Join(fmt.Errorf("after the guard's death %q is not the first rule", f.rule), err)
		}
	}
	d.out.good("the rules are where they were: they are the kernel's")
	return d.proveBlocked(ctx)
}

func (d *demonstration) stepMetrics(context.Context) error {
	lines := changes(d.before, d.after)
	d.out.quote(strings.Join(lines, "\n"))
	drifts := d.after.sum("imds_guard_drift_total", "") - d.before.sum("imds_guard_drift_total", "")
	repairs := d.after.sum("imds_guard_repairs_total", `result="success"`) - d.before.sum("imds_guard_repairs_total", `result="success"`)
	if want := float64(d.tamperings); drifts < want || repairs < want {
		return fmt.Errorf("the metrics count %g drifts and %g repairs, after tampering %d times", drifts, repairs, d.tamperings)
	}
	return nil
}

func (d *demonstration) stepCleanup(ctx context.Context) error {
	out, err := d.node.Command(ctx, d.opts.guard, "cleanup").CombinedOutput()
	if err != nil {
		return fmt.Errorf("running imds-guard cleanup: %w\n%s", err, out)
	}
	for _, f := range d.families {
		rules, err := d.iptables(ctx, f, "-S", "FORWARD")
		if err != nil {
			return err
		}
		if strings.Contains(rules, f.imds) {
			return fmt.Errorf("after the cleanup there are still rules for the endpoint:\n%s", rules)
		}
		if !strings.Contains(rules, "-A FORWARD -j ACCEPT") {
			return fmt.Errorf("the cleanup removed somebody else's rule too, what is left is:\n%s", rules)
		}
		for _, pod := range d.pods {
			if _, err := steal(ctx, pod.Namespace, f.imds); err != nil {
				return fmt.Errorf("a pod is not served after the cleanup: %w", err)
			}
		}
	}
	d.out.good("the rules are gone, those of others are not")
	d.out.bad("the pods are served again: of all that imds-guard does, only this command takes the protection away")
	return nil
}

// tamper runs a command against the rule of one family and shows how long that lasted.
func (d *demonstration) tamper(ctx context.Context, f family, args ...string) error {
	p, err := startProbe(ctx, d.pods[0], d.node.Outside(), f.probeAddress)
	if err != nil {
		return err
	}
	tampered := time.Now()
	var back time.Time
	_, err = d.iptables(ctx, f, args...)
	if err == nil {
		back, err = d.waitOnTop(ctx, f)
	}
	arrived, through := p.stop()
	if err != nil {
		return err
	}
	d.tamperings++
	d.out.done("%s %s", f.tool, strings.Join(args, " "))
	// From before the command to after the look: the rule was away for less than that.
	if arrived > 0 {
		return fmt.Errorf("after %s %s: %s, past the route layer", f.tool, strings.Join(args, " "), through)
	}
	d.out.good("seen back on top %s after that command was started; %s: the route was there", milliseconds(back.Sub(tampered)), through)
	return d.showRules(ctx, f)
}

// proveBlocked lets every pod try both families, all at once.
func (d *demonstration) proveBlocked(ctx context.Context) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for _, pod := range d.pods {
		for _, f := range d.families {
			wg.Go(func() {
				err := expectBlocked(ctx, pod.Namespace, f.imds)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.out.good("both pods get no answer from the endpoint within %s, by IPv4 and by IPv6", blockedAfter)
	return nil
}

//go:build linux

// AWS's own mock of the endpoint.

package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// startMock starts AWS's mock outside of the node on the addresses of both families, in place of the node's own stand-in,
// and waits until it answers. It ends with the node.
func (d *demonstration) startMock(ctx context.Context, binary string) error {
	d.node.IMDS().Stop()
	for _, f := range d.families {
		host := f.imds
		if strings.Contains(host, ":") {
			host = "[" + host + "]"
		}
		log := &testnode.Log{}
		cmd := d.node.Outside().Command(ctx, binary, "--hostname", host, "--port", "80", "--imdsv2")
		cmd.Stdout, cmd.Stderr = log, log
		ended, err := start(cmd)
		if err != nil {
			return fmt.Errorf("starting the metadata mock: %w", err)
		}
		if err := waitForMock(ctx, d.node.Outside(), f.imds, ended); err != nil {
			return fmt.Errorf("starting the metadata mock: %w\n%s", err, log.Tail(40))
		}
	}
	return nil
}

func waitForMock(ctx context.Context, from *testnode.Namespace, ip string, ended <-chan error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		_, err := steal(ctx, from, ip)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case err := <-ended:
			return fmt.Errorf("it ended: %w", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// start starts the command; its end is sent on the channel.
func start(cmd *exec.Cmd) (<-chan error, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		ended <- err
	}()
	return ended, nil
}

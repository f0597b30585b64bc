// The right to change rules.

package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// requireNetAdmin reports by an error that the process lacks CAP_NET_ADMIN, which reading rules needs as well as changing
// them. It is asked before anything on the node is touched.
func requireNetAdmin(what string) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("reading the process's capabilities: %w", err)
	}
	if data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return fmt.Errorf("%s needs CAP_NET_ADMIN; run as root, or in a container with that capability", what)
	}
	return nil
}

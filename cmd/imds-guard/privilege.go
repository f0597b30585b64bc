// The right to change rules.

package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/capability"
)

// requireNetAdmin reports by an error that the process lacks CAP_NET_ADMIN, which reading rules needs as well as changing
// them. It is asked before anything on the node is touched.
func requireNetAdmin(what string) error {
	own, err := capability.Own()
	if err != nil {
		return err
	}
	if !own.Has(unix.CAP_NET_ADMIN) {
		return fmt.Errorf("%s needs CAP_NET_ADMIN; run as root, or in a container with that capability", what)
	}
	return nil
}

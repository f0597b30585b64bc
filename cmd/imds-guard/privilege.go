// The check for the privilege to read and change rules.

package main

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/capability"
)

// requireNetAdmin returns an error if the process lacks CAP_NET_ADMIN, which reading rules needs as much as changing them. It
// is called before anything on the node is touched.
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

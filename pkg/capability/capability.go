// Package capability reads the capabilities of this process (capabilities(7)).
package capability

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Set are the effective capabilities of a process.
type Set [2]unix.CapUserData

// Own returns the capabilities of the calling thread.
func Own() (s Set, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &s[0]); err != nil {
		return s, fmt.Errorf("reading the process's capabilities: %w", err)
	}
	return s, nil
}

// Has reports whether the set contains a capability, unix.CAP_NET_ADMIN for example.
func (s Set) Has(c uint) bool { return s[c/32].Effective&(1<<(c%32)) != 0 }

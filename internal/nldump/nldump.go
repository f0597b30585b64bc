// Package nldump takes netlink dumps that somebody else changes under way.
package nldump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Consistent repeats a dump that the kernel says was changed under way, and takes the last one as it is: the change has its own
// event, which makes for the next dump.
func Consistent[T any](dump func() ([]T, error)) (items []T, err error) {
	for range 3 {
		items, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, nil
}

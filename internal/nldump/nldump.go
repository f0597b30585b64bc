// Package nldump makes netlink dumps while something else changes what is dumped.
package nldump

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// Consistent repeats a dump that the kernel marks as interrupted by a change, and in the end accepts the last one as it is: the
// change sends its own event, which triggers the next dump.
func Consistent[T any](dump func() ([]T, error)) (items []T, err error) {
	for range 3 {
		items, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, nil
}

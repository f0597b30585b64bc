// One listing of the interfaces.

package ifwatch

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// Interface is one by which packets enter FORWARD: the one that `-i` has to match there.
type Interface struct {
	Name string
	// Kind is the kernel's name of its type, e.g. veth or bridge.
	Kind string
}

// Picture is what was listed last.
type Picture struct {
	// Interfaces are the pod-side ones: those by which the packets of pods enter FORWARD.
	Interfaces []Interface
	// Tunnels are those by which packets enter FORWARD that came to the node inside of other packets, from pods too. Their
	// Kind is the tunnel's, also where a bridge, say, stands for the tunnel.
	Tunnels []Interface
	// Err says why all of this may be different by now.
	Err error
}

// List makes a picture of the calling thread's network namespace.
func List() (Picture, error) {
	links, err := consistent(netlink.LinkList)
	if err != nil {
		return Picture{}, fmt.Errorf("listing interfaces: %w", err)
	}
	uplinks, err := findUplinks()
	if err != nil {
		return Picture{}, err
	}
	return Picture{Interfaces: podSide(links, uplinks), Tunnels: tunnels(links)}, nil
}

// consistent repeats a dump that the kernel says was changed under way, and takes the last one as it is: the change has
// its own event, which makes for the next dump.
func consistent[T any](dump func() ([]T, error)) (items []T, err error) {
	for range 3 {
		items, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return items, err
		}
	}
	return items, nil
}

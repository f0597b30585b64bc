// One listing of the interfaces.

package ifwatch

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/imds-guard/imds-guard/internal/nldump"
)

// Interface is one through which packets enter FORWARD: the one that `-i` has to match there.
type Interface struct {
	Name string
	// Kind is the kernel's name of its type, e.g. veth or bridge.
	Kind string
}

// Picture is the result of the last listing.
type Picture struct {
	// Interfaces are the pod-side ones: those through which pods' packets enter FORWARD.
	Interfaces []Interface
	// Tunnels are those through which packets enter FORWARD that came to the node inside other packets, possibly from pods.
	// Kind is the tunnel's, even where another interface, such as a bridge, takes the tunnel's place.
	Tunnels []Interface
	// Err says why this may be out of date.
	Err error
}

// List makes a picture of the calling thread's network namespace.
func List() (Picture, error) {
	links, err := nldump.Consistent(netlink.LinkList)
	if err != nil {
		return Picture{}, fmt.Errorf("listing interfaces: %w", err)
	}
	uplinks, err := findUplinks()
	if err != nil {
		return Picture{}, err
	}
	return Picture{Interfaces: podSide(links, uplinks), Tunnels: tunnels(links)}, nil
}

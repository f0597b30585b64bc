// One listing of the interfaces.

package ifwatch

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/imds-guard/imds-guard/internal/nldump"
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

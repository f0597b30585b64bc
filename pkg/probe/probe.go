// One probe.

package probe

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/pkg/ifpattern"
	"github.com/imds-guard/imds-guard/pkg/imds"
)

// ErrNotForwarding says that the node does not forward packets of the family, so that no probe was necessary.
var ErrNotForwarding = errors.New("the node does not forward packets of this family")

// port is the metadata service's.
const port = 80

// patience is how long to wait for an answer. A later one goes unnoticed; but the metadata service answers from the same
// machine, within a few milliseconds.
const patience = 300 * time.Millisecond

// sources are the packets' source addresses, which nobody has (RFC 5737, for documentation; RFC 4193, one of our own).
var sources = map[imds.Family]netip.Addr{
	imds.IPv4: netip.MustParseAddr("192.0.2.254"),
	imds.IPv6: netip.MustParseAddr("fd69:6d64:7367::1"),
}

// Packets is how many packets a probe sends in immediate succession: it is unlikely that as many others are counted in that
// moment.
const Packets = 8

// Seen is what became of the packets. The zero value says that they were not seen again. (An interface without a carrier loses
// packets before they can be seen.)
type Seen struct {
	// Answered: the endpoint answered.
	Answered bool
	// Left is the interface through which the packet left; empty if it was not seen leaving.
	Left string
}

// Forward sends a TCP SYN to the endpoint, Packets times. The interface through which they enter has a name that matches the
// first pattern with a wildcard; if there is none, a name of our own. The calling thread has to be in the node's network
// namespace.
func Forward(f imds.Family, patterns []ifpattern.Pattern) (s Seen, err error) {
	defer func() {
		if err != nil && !errors.Is(err, ErrNotForwarding) {
			err = fmt.Errorf("probing %s forwarding: %w", f, err)
		}
	}()
	if !f.Forwarded() {
		return s, ErrNotForwarding
	}
	unlock, err := lock()
	if err != nil {
		return s, err
	}
	defer unlock()
	p := newSegment(f)
	t, err := openTap(p)
	if err != nil {
		return s, err
	}
	defer t.close()
	w, err := openWay(nearName(patterns), p.source)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	for range Packets {
		if err := w.send(p); err != nil {
			return s, err
		}
	}
	s, err = t.watch(time.Now().Add(patience), w)
	if s.Answered { // the endpoint now waits for the third packet of the handshake
		p.reset = true
		err = errors.Join(err, w.send(p))
	}
	return s, err
}

// newSegment makes up a unique connection.
func newSegment(f imds.Family) segment {
	var random [8]byte
	_, _ = rand.Read(random[:]) // it never fails
	return segment{
		family: f, source: sources[f], destination: f.Endpoint().Addr(),
		sourcePort: 1<<15 | binary.BigEndian.Uint16(random[0:]), sequence: binary.BigEndian.Uint32(random[4:]),
	}
}

// ownName is the near end's name if no pattern has a wildcard, and otherwise its suffix.
const ownName = "imdsprobe"

// nearName returns a name that matches the first pattern with a wildcard, and that no CNI uses.
func nearName(patterns []ifpattern.Pattern) string {
	for _, p := range patterns {
		if prefix, wild := strings.CutSuffix(p.String(), "+"); wild {
			name := prefix + ownName
			return name[:min(len(name), ifpattern.MaxLen)]
		}
	}
	return ownName
}

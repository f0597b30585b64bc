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

// ErrNotForwarding says that the node does not forward packets of this family, so that none had to be sent.
var ErrNotForwarding = errors.New("the node does not forward packets of this family")

// port is where the metadata service answers.
const port = 80

// patience is for how long an answer is waited for. One that comes later is not noticed; the metadata service answers from the
// same machine, within a few milliseconds.
const patience = 300 * time.Millisecond

// sources are where the packets say that they come from: addresses that nobody has (RFC 5737, for documents; RFC 4193, of our own).
var sources = map[imds.Family]netip.Addr{
	imds.IPv4: netip.MustParseAddr("192.0.2.254"),
	imds.IPv6: netip.MustParseAddr("fd69:6d64:7367::1"),
}

// Packets is how many a probe sends, one right after the other: so many of others are rarely counted in that moment.
const Packets = 8

// Seen is what became of the packets. The zero value: it was not seen again. (An interface without a carrier loses packets before
// they can be seen.)
type Seen struct {
	// Answered: the endpoint answered.
	Answered bool
	// Left is the interface by which the packet went out; empty if it was seen at none.
	Left string
}

// Forward sends a TCP SYN to the endpoint, Packets times. The interface that they come in by has a name that the first pattern with a
// wildcard matches, or else, and without patterns, a name of our own. The calling thread's network namespace is the node's.
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
	if s.Answered { // and now waits for the third part of the handshake
		p.reset = true
		err = errors.Join(err, w.send(p))
	}
	return s, err
}

// newSegment makes up a connection that no other has.
func newSegment(f imds.Family) segment {
	var random [8]byte
	_, _ = rand.Read(random[:]) // it never fails
	return segment{
		family: f, source: sources[f], destination: f.Endpoint().Addr(),
		sourcePort: 1<<15 | binary.BigEndian.Uint16(random[0:]), sequence: binary.BigEndian.Uint32(random[4:]),
	}
}

// ownName is the near end's if no pattern has a wildcard, and the end of it if one has.
const ownName = "imdsprobe"

// nearName is a name that the first pattern with a wildcard matches. It is none that a CNI gives.
func nearName(patterns []ifpattern.Pattern) string {
	for _, p := range patterns {
		if prefix, wild := strings.CutSuffix(p.String(), "+"); wild {
			name := prefix + ownName
			return name[:min(len(name), ifpattern.MaxLen)]
		}
	}
	return ownName
}

//go:build linux

// A stream of packets from a pod to the endpoint: those that arrive are what the pod got through.

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// probeInterval is the pause between two packets.
const probeInterval = 100 * time.Microsecond

// probeTail is how long packets are sent on after the rule was seen back: that they don't arrive any more is what shows
// it.
const probeTail = 5 * time.Millisecond

// probe sends numbered UDP packets until it is stopped, and knows which of them arrived.
type probe struct {
	from      net.Conn
	to        net.PacketConn
	quit      atomic.Bool
	sending   chan struct{}
	receiving chan struct{}
	sent      []time.Time  // by number
	arrived   map[int]bool // the numbers
}

// startProbe sends from the pod to the address, where the outside listens.
func startProbe(ctx context.Context, pod *testnode.Pod, outside *testnode.Namespace, address string) (*probe, error) {
	p := &probe{sending: make(chan struct{}), receiving: make(chan struct{}), arrived: make(map[int]bool)}
	err := outside.Do(func() (err error) {
		p.to, err = net.ListenPacket("udp", address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listening for probe packets: %w", err)
	}
	if p.from, err = pod.Dial(ctx, "udp", address); err != nil {
		p.to.Close()
		return nil, fmt.Errorf("making a socket for probe packets: %w", err)
	}
	go p.send()
	go p.receive()
	return p, nil
}

func (p *probe) send() {
	defer close(p.sending)
	for !p.quit.Load() {
		number := binary.BigEndian.AppendUint32(nil, uint32(len(p.sent)))
		p.sent = append(p.sent, time.Now())
		_, _ = p.from.Write(number) // one that can't be sent does not arrive
		// time.Sleep is never shorter than a millisecond on an idle system.
		pause := unix.NsecToTimespec(int64(probeInterval))
		_ = unix.Nanosleep(&pause, nil)
	}
}

func (p *probe) receive() {
	defer close(p.receiving)
	for buf := make([]byte, 4); ; {
		n, _, err := p.to.ReadFrom(buf)
		if err != nil {
			return
		}
		if n == len(buf) {
			p.arrived[int(binary.BigEndian.Uint32(buf))] = true
		}
	}
}

// stop ends the probe and tells what became of the packets.
func (p *probe) stop() (arrived int, told string) {
	time.Sleep(probeTail)
	p.quit.Store(true)
	<-p.sending
	p.from.Close()
	p.to.Close()
	<-p.receiving
	if len(p.arrived) == 0 {
		return 0, fmt.Sprintf("none of %d probe packets got through", len(p.sent))
	}
	// From the last packet that was blocked before to the first one after, so that a pause in the sending can't make the
	// time look shorter than it was.
	numbers := slices.Sorted(maps.Keys(p.arrived))
	before, after := max(0, numbers[0]-1), min(len(p.sent)-1, numbers[len(numbers)-1]+1)
	return len(p.arrived), fmt.Sprintf("%d of %d probe packets got through, within %s",
		len(p.arrived), len(p.sent), milliseconds(p.sent[after].Sub(p.sent[before])))
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}

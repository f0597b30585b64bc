// The watchers: each only says that something may have changed, and leaves it to the woken one to look.
package netfilter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/keep"
)

const (
	// watchBuffer is the receive buffer of the nftables subscription in bytes. A restore of 50,000 rules overflows the
	// default (208 KiB) and not 1 MiB; memory is used only while messages wait.
	watchBuffer = 4 << 20
	// PollPeriod is how often the summary of the legacy tables is read.
	PollPeriod = 100 * time.Millisecond
)

// Writer is the process that committed an nftables transaction, as the kernel names it.
type Writer struct {
	PID  uint32
	Name string
}

// NFTWatch follows the nftables transactions of this network namespace.
type NFTWatch struct {
	// Wake is called after every transaction, and after every new subscription.
	Wake func()
	// Lost is called when notifications were lost: ENOBUFS, or a broken socket.
	Lost   func(error)
	writer atomic.Pointer[Writer]
}

// LastWriter is who committed last, for the log; the zero Writer if nobody was seen.
func (w *NFTWatch) LastWriter() Writer {
	if last := w.writer.Load(); last != nil {
		return *last
	}
	return Writer{}
}

// Run follows until ctx ends. It subscribes again whenever the subscription breaks.
func (w *NFTWatch) Run(ctx context.Context) { keep.Following(ctx, w.follow, w.Lost) }

func (w *NFTWatch) follow(ctx context.Context) error {
	s, err := nl.Subscribe(unix.NETLINK_NETFILTER, unix.NFNLGRP_NFTABLES)
	if err != nil {
		return fmt.Errorf("subscribing to nftables: %w", err)
	}
	defer s.Close()
	defer context.AfterFunc(ctx, s.Close)()
	if err := s.SetReceiveBufferSize(watchBuffer, true); err != nil {
		return fmt.Errorf("setting the nftables receive buffer: %w", err)
	}
	w.Wake()
	for {
		messages, _, err := s.Receive()
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receiving from nftables: %w", err)
		}
		for _, m := range messages {
			// NEWGEN is the last message of every transaction (net/netfilter/nf_tables_api.c, nf_tables_commit).
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				w.note(m)
				w.Wake()
			}
		}
	}
}

func (w *NFTWatch) note(m syscall.NetlinkMessage) {
	attrs, err := parseNFT(m.Data)
	if err != nil {
		return
	}
	if pid := attrs[unix.NFTA_GEN_PROC_PID].Value; len(pid) == 4 {
		w.writer.Store(&Writer{
			PID:  binary.BigEndian.Uint32(pid),
			Name: unix.ByteSliceToString(attrs[unix.NFTA_GEN_PROC_NAME].Value),
		})
	}
}

// LegacyPoll follows the legacy filter tables, of which the kernel sends no notifications.
type LegacyPoll struct {
	Families []enforce.Family
	// Wake is called when a summary has changed.
	Wake func()
	// Lost is called when a summary can't be read, once until it can be again.
	Lost func(error)

	on      atomic.Bool
	changed chan struct{}
}

// NewLegacyPoll makes a poll that is off: reading a summary would load the table where legacy is not in use.
func NewLegacyPoll(wake func(), lost func(error), families ...enforce.Family) *LegacyPoll {
	return &LegacyPoll{Families: families, Wake: wake, Lost: lost, changed: make(chan struct{}, 1)}
}

// Set turns the poll on or off. While it is off it costs nothing.
func (p *LegacyPoll) Set(on bool) {
	if p.on.Swap(on) != on {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
}

// Run polls until ctx ends.
func (p *LegacyPoll) Run(ctx context.Context) {
	ticker := time.NewTicker(PollPeriod)
	ticker.Stop()
	defer ticker.Stop()
	var tables []*polled
	for {
		select {
		case <-ctx.Done():
			closeAll(tables)
			return
		case <-p.changed:
			closeAll(tables)
			tables = nil
			ticker.Stop()
			if p.on.Load() {
				tables = p.open()
				ticker.Reset(PollPeriod)
				p.Wake()
			}
		case <-ticker.C:
			for _, t := range tables {
				p.poll(t)
			}
		}
	}
}

// polled is one family's filter table as it was last seen.
type polled struct {
	socket *LegacySocket
	last   LegacyInfo
	lost   bool
}

func (p *LegacyPoll) open() (tables []*polled) {
	for _, f := range p.Families {
		s, err := NewLegacySocket(f)
		if errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without the family has nothing to follow
		}
		if err != nil {
			p.Lost(err)
			continue
		}
		tables = append(tables, &polled{socket: s})
	}
	return tables
}

func closeAll(tables []*polled) {
	for _, t := range tables {
		t.socket.Close()
	}
}

func (p *LegacyPoll) poll(t *polled) {
	info, err := t.socket.Info("filter")
	if err != nil {
		if !t.lost {
			p.Lost(err)
		}
		t.lost = true
		return
	}
	if t.lost || info != t.last {
		t.last, t.lost = info, false
		p.Wake()
	}
}

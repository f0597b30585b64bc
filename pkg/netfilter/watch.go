// The watcher of nftables: it only reports that something may have changed. Whoever is woken has to look.

package netfilter

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/subscription"
)

// Writer is the process that committed an nftables transaction, as the kernel names it.
type Writer struct {
	PID  uint32
	Name string
}

// NFTWatch follows the nftables transactions of this network namespace.
type NFTWatch struct {
	// Wake is called after every transaction, with the families in whose tables it changed something; without any after a
	// transaction that changed other tables too, and after every new subscription, since anything may have changed.
	Wake func(changed ...imds.Family)
	// Lost is called when notifications were lost: ENOBUFS, or a broken socket.
	Lost   func(error)
	writer atomic.Pointer[Writer]
}

// LastWriter returns the process that committed last, for the log; the zero Writer if none was seen.
func (w *NFTWatch) LastWriter() Writer {
	if last := w.writer.Load(); last != nil {
		return *last
	}
	return Writer{}
}

// Run follows until ctx ends. It subscribes again whenever the subscription breaks.
func (w *NFTWatch) Run(ctx context.Context) { subscription.Keep(ctx, w.follow, w.Lost) }

func (w *NFTWatch) follow(ctx context.Context) error {
	var c changes
	err := subscription.Follow(ctx, subscription.Source{
		Protocol: unix.NETLINK_NETFILTER, Groups: []uint{unix.NFNLGRP_NFTABLES},
		Begun: func() { w.Wake() },
		Message: func(m syscall.NetlinkMessage) {
			// NEWGEN is the last message of every transaction (net/netfilter/nf_tables_api.c, nf_tables_commit).
			if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				c.add(m)
				return
			}
			w.note(m)
			w.Wake(c.known()...)
			c = changes{}
		},
	})
	if err != nil {
		return fmt.Errorf("following nftables: %w", err)
	}
	return nil
}

// changes are the families in whose tables a transaction changed something.
type changes struct {
	families []imds.Family
	others   bool // families other than those of imds
}

// add takes in a message of the transaction; its nfgen_family is the table's family (nf_tables_fill_rule_info and the like).
func (c *changes) add(m syscall.NetlinkMessage) {
	for _, f := range imds.Families {
		if len(m.Data) > 0 && m.Data[0] == nfProto(f) {
			if !slices.Contains(c.families, f) {
				c.families = append(c.families, f)
			}
			return
		}
	}
	c.others = true
}

// known returns the families, or none if there are others too.
func (c changes) known() []imds.Family {
	if c.others {
		return nil
	}
	return c.families
}

// note remembers the writer, unless it is this process. (For its own socket the kernel reports the thread's number, so the
// process is recognised by its name.)
func (w *NFTWatch) note(m syscall.NetlinkMessage) {
	attrs, err := parseNFT(m.Data)
	if err != nil {
		return
	}
	name := unix.ByteSliceToString(attrs[unix.NFTA_GEN_PROC_NAME].Value)
	if pid := attrs[unix.NFTA_GEN_PROC_PID].Value; len(pid) == 4 && name != ownName() {
		w.writer.Store(&Writer{PID: binary.BigEndian.Uint32(pid), Name: name})
	}
}

// ownName returns this process's name as the kernel knows it.
var ownName = sync.OnceValue(func() string {
	name, _ := os.ReadFile("/proc/self/comm")
	return strings.TrimSpace(string(name))
})

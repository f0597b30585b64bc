// The watcher of nftables: it only says that something may have changed, and leaves it to the woken one to look.

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
	// Wake is called after every transaction, with the families in whose tables it changed something; with none after a
	// transaction that changed others' too, and after every new subscription: anything may have changed then.
	Wake func(changed ...imds.Family)
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
	others   bool // than those of imds
}

// add takes a message of the transaction, whose nfgen_family is the table's (nf_tables_fill_rule_info and its like).
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

// known are the families, none if there are others too.
func (c changes) known() []imds.Family {
	if c.others {
		return nil
	}
	return c.families
}

// note keeps the writer, unless it is this process itself, by its own socket. (The kernel gives the number of the thread
// then, so that the process is known by its name.)
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

// ownName is this process's name as the kernel has it.
var ownName = sync.OnceValue(func() string {
	name, _ := os.ReadFile("/proc/self/comm")
	return strings.TrimSpace(string(name))
})

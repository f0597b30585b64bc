// The legacy backend: which tables are loaded, and the kernel's own summary of a table.

package netfilter

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// LegacyTables lists the legacy tables that are loaded in this network namespace; none where the kernel has no legacy
// iptables. Reading the list loads nothing, unlike any iptables-legacy command.
func LegacyTables(f imds.Family) ([]string, error) {
	// thread-self, because /proc/net shows the main thread's namespace.
	file := "/proc/thread-self/net/ip_tables_names"
	if f == imds.IPv6 {
		file = "/proc/thread-self/net/ip6_tables_names"
	}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing legacy tables (%s): %w", f, err)
	}
	return strings.Fields(string(text)), nil
}

// LegacyInfo is the kernel's summary of a legacy table, struct ipt_getinfo (linux/netfilter_ipv4/ip_tables.h; struct
// ip6t_getinfo is the same). Two equal summaries mean that no rule was added, removed or moved to another chain in between. An
// edit that keeps every rule's size does not show.
type LegacyInfo struct {
	Name       [32]byte
	ValidHooks uint32
	HookEntry  [5]uint32
	Underflow  [5]uint32
	// Entries counts rules, policies and the table's end mark, Size is in bytes.
	Entries, Size uint32
}

// Forward returns how many bytes the rules of FORWARD take. It changes with every rule that is added to or removed from that
// chain, and with no change of other chains.
func (i LegacyInfo) Forward() uint32 {
	const forward = 2 // NF_INET_FORWARD, linux/netfilter.h
	return i.Underflow[forward] - i.HookEntry[forward]
}

// emptyEntries is how many entries an untouched filter table has: three policies and the end mark.
const emptyEntries = 4

// Empty reports whether the filter table is as the kernel created it.
func (i LegacyInfo) Empty() bool { return i.Entries <= emptyEntries }

// getInfo is IPT_SO_GET_INFO and IP6T_SO_GET_INFO, IPT_BASE_CTL in both headers.
const getInfo = 64

// LegacySocket reads summaries. It stays bound to the network namespace in which it was made.
type LegacySocket struct {
	fd, level int
}

// NewLegacySocket opens a socket to ask about a family's tables.
func NewLegacySocket(f imds.Family) (*LegacySocket, error) {
	domain, level := unix.AF_INET, unix.SOL_IP
	if f == imds.IPv6 {
		domain, level = unix.AF_INET6, unix.SOL_IPV6
	}
	fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("opening a raw socket (%s): %w", f, err)
	}
	return &LegacySocket{fd, level}, nil
}

// Close closes the socket.
func (s *LegacySocket) Close() error { return unix.Close(s.fd) }

// Info reads a table's summary, in about a microsecond however many rules there are. It loads the table if necessary: call it
// only for tables in LegacyTables, or where legacy is in use.
func (s *LegacySocket) Info(table string) (LegacyInfo, error) {
	var info LegacyInfo
	copy(info.Name[:], table)
	size := uint32(unsafe.Sizeof(info))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), getInfo,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return info, fmt.Errorf("reading the summary of legacy table %s: %w", table, errno)
	}
	return info, nil
}

// HasChain reports whether a table has a user-defined chain of this name. Unlike a command it neither waits for the lock nor
// forks. The kernel marks the beginning of such a chain with a rule whose target ERROR carries the chain's name (struct
// xt_error_target of linux/netfilter/x_tables.h).
func (s *LegacySocket) HasChain(table, chain string) (bool, error) {
	var entries []byte
	err := error(unix.EAGAIN)
	for tries := 0; tries < 3 && errors.Is(err, unix.EAGAIN); tries++ { // the size may change between the two calls
		var info LegacyInfo
		if info, err = s.Info(table); err == nil {
			entries, err = s.entries(table, info.Size)
		}
	}
	if err != nil {
		return false, err
	}
	mark := make([]byte, xtTargetName+1) // the name of the target, and its revision
	copy(mark, "ERROR")
	return bytes.Contains(entries, append(append(mark, chain...), 0)), nil
}

// xtTargetName is the size of a target's name (XT_EXTENSION_MAXNAMELEN of linux/netfilter/x_tables.h).
const xtTargetName = 29

// entries is IPT_SO_GET_ENTRIES: the table's rules, size bytes of them, in the kernel's format.
func (s *LegacySocket) entries(table string, size uint32) ([]byte, error) {
	const head = 40 // struct ipt_get_entries: the table's name, the size, and padding
	buffer := make([]byte, head+size)
	copy(buffer[:32], table)
	binary.NativeEndian.PutUint32(buffer[32:], size)
	length := uint32(len(buffer))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), uintptr(s.level), getInfo+1,
		uintptr(unsafe.Pointer(&buffer[0])), uintptr(unsafe.Pointer(&length)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("reading the entries of legacy table %s: %w", table, errno)
	}
	return buffer[head:], nil
}

// HasLegacyChain is LegacySocket.HasChain with a socket of its own, for a table that is loaded.
func HasLegacyChain(f imds.Family, table, chain string) (bool, error) {
	s, err := NewLegacySocket(f)
	if err != nil {
		return false, err
	}
	defer s.Close()
	return s.HasChain(table, chain)
}

// ReadLegacyInfo is Info with a socket of its own, for a table that may not be loaded: then ok is false.
func ReadLegacyInfo(f imds.Family, table string) (info LegacyInfo, ok bool, err error) {
	tables, err := LegacyTables(f)
	if err != nil || !slices.Contains(tables, table) {
		return info, false, err
	}
	s, err := NewLegacySocket(f)
	if err != nil {
		return info, false, err
	}
	defer s.Close()
	info, err = s.Info(table)
	return info, err == nil, err
}

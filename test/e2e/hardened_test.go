//go:build e2e

// The hardened manifest: what the agent is really confined to. That it does its work there is what the other tests prove.

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel's own account of the running process, not the manifest's; and all layers are in force with that.
func TestHardenedConfinement(t *testing.T) {
	begin(t)
	node.Install(t, hardened)
	node.waitAllLayers(t)
	pid := node.AgentPID(t)

	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok {
			status[key] = strings.TrimSpace(value)
		}
	}
	few := fmt.Sprintf("%016x", uint64(1)<<unix.CAP_NET_ADMIN|1<<unix.CAP_NET_RAW|1<<unix.CAP_BPF)
	for _, want := range []struct{ field, value, why string }{
		{"Seccomp", "2", "a filter is in force"},
		{"NoNewPrivs", "1", "no program can give it more"},
		{"CapEff", few, "NET_ADMIN, NET_RAW and BPF, nothing else"},
		{"CapBnd", few, "NET_ADMIN, NET_RAW and BPF, nothing else"},
	} {
		if got := status[want.field]; got != want.value {
			t.Errorf("%s is %s, want %s: %s", want.field, got, want.value, want.why)
		}
	}

	var root unix.Statfs_t
	if err := unix.Statfs(fmt.Sprintf("/proc/%d/root/", pid), &root); err != nil {
		t.Fatal(err)
	}
	if root.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("its root is writable (flags %s)", strconv.FormatInt(root.Flags, 16))
	}
}

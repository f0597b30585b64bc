package netfilter

import (
	"runtime"
	"testing"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

const longChain = 5_000

// A long chain with our rules at the top takes next to no memory to read, and constant writes by others don't interrupt the
// reading.
func TestLongChain(t *testing.T) {
	// Not beside others: what they allocate would be counted, too.
	f := imds.IPv4
	node, sh := newNode(t)
	sh(`{ echo '*filter'; echo '-A FORWARD -i eni+ -d %s -j DROP'; for i in $(seq %d); do echo "-A FORWARD -s 10.$((i / 256)).$((i %% 256)).1 -p tcp --dport 80 -j ACCEPT"; done
echo '-A FORWARD -i eni+ -d %s -j DROP'; echo COMMIT; } | iptables-nft-restore --noflush`, f.Endpoint(), longChain, f.Endpoint())
	churn := node.Command(t.Context(), "sh", "-ec", `nft add table ip churn; nft 'add chain ip churn c'
while :; do nft 'add rule ip churn c counter; flush chain ip churn c'; done`)
	ours := func(r NFTRule) bool { return r.Plain && r.Dest == f.Endpoint().Addr() }
	err := node.Host().Do(func() error {
		var nft NFT
		defer nft.Close()
		read := func(enough func(NFTRule) bool) (c NFTChain, allocated uint64) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := nft.ReadChain(f, "filter", "FORWARD", Scope{Address: f.Endpoint().Addr(), Top: 100, Enough: enough})
			if err != nil {
				t.Fatal(err)
			}
			runtime.ReadMemStats(&after)
			return c, after.TotalAlloc - before.TotalAlloc
		}
		c, _ := read(ours)
		if len(c.Top) != 1 || len(c.Below) != 1 || c.Length != longChain+2 || c.Incomplete {
			t.Errorf("%d at the top, %d below, length %d, incomplete %t", len(c.Top), len(c.Below), c.Length, c.Incomplete)
		}
		if c.Below[0].Position != longChain+1 || !ours(c.Below[0]) {
			t.Errorf("the second copy is %+v", c.Below[0])
		}
		// A rule takes some 300 bytes in the kernel's list, and what was kept of each would show here.
		if _, allocated := read(ours); allocated > 100*longChain {
			t.Errorf("%d bytes were allocated for %d rules", allocated, longChain)
		}
		if c, _ := read(func(NFTRule) bool { return false }); len(c.Top) != 100 || len(c.Below) != 1 {
			t.Errorf("without enough: %d at the top, %d below", len(c.Top), len(c.Below))
		}

		if err := churn.Start(); err != nil {
			return err
		}
		cut := false
		for reads := 0; reads < 30 || !cut && reads < 1000; reads++ {
			c, _ := read(ours)
			if len(c.Top) != 1 || !ours(c.Top[0]) || c.Incomplete {
				t.Fatalf("while somebody writes: %d at the top, incomplete %t", len(c.Top), c.Incomplete)
			}
			cut = cut || c.Length < longChain+2
		}
		if !cut {
			t.Error("no reading was interrupted; then this test proves nothing")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

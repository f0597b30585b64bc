// The choice of the backend: imds-guard writes where the node's own agents write.
package rules

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/enforce"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// Backend is a kernel interface that an iptables command writes to. The two are separate hooks: a DROP in either wins
// over an ACCEPT in the other.
type Backend string

const (
	// Auto is not a backend but the wish to have one chosen.
	Auto   Backend = "auto"
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Backends lists every value of a wish.
var Backends = []Backend{Auto, NFT, Legacy}

// hints are the chains that the kubelet keeps in the mangle table of the backend that it uses, for others to find
// (kubernetes/enhancements, KEP-3178; kubernetes-sigs/iptables-wrappers looks for the same two).
var hints = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// Selector knows which backend is in use and holds its commands.
type Selector struct {
	wish     Backend
	families []enforce.Family
	current  Backend
	commands map[enforce.Family]*command
	nft      netfilter.NFT

	// mangle is the summary of the legacy mangle tables when they were last searched for hints, so that they are
	// searched, by a command, only after they have changed.
	mangle     map[enforce.Family]netfilter.LegacyInfo
	legacyHint bool
}

// NewSelector chooses a backend. It is an error if no iptables command that could serve is installed.
func NewSelector(wish Backend, families []enforce.Family) (*Selector, error) {
	s := &Selector{wish: wish, families: families, mangle: map[enforce.Family]netfilter.LegacyInfo{}}
	if !installed(NFT) && !installed(Legacy) || wish != Auto && !installed(wish) {
		return nil, fmt.Errorf("finding iptables: none of %s is in PATH; install the package that has them "+
			"(Debian and Ubuntu: iptables; Amazon Linux and Fedora: iptables-nft or iptables-legacy)", wantedNames(wish))
	}
	s.Refresh()
	return s, nil
}

func wantedNames(wish Backend) string {
	if wish != Auto {
		return binaryName(wish, enforce.IPv4)
	}
	return binaryName(NFT, enforce.IPv4) + ", " + binaryName(Legacy, enforce.IPv4)
}

func installed(b Backend) bool {
	_, err := exec.LookPath(binaryName(b, enforce.IPv4))
	return err == nil
}

// Current is the backend in use.
func (s *Selector) Current() Backend { return s.current }

// Refresh chooses anew and reports whether the choice has changed. It forks no command unless the legacy mangle table has
// changed, and never loads a legacy table.
func (s *Selector) Refresh() (changed bool) {
	chosen := s.choose()
	if chosen == s.current {
		return false
	}
	s.current, s.commands = chosen, map[enforce.Family]*command{}
	return true
}

func (s *Selector) choose() Backend {
	switch {
	case s.wish != Auto:
		return s.wish
	case !installed(Legacy):
		return NFT
	case !installed(NFT):
		return Legacy
	case s.nftHint():
		return NFT
	case s.hintInLegacy():
		return Legacy
	case s.current != "":
		return s.current
	case s.onlyLegacyWritten():
		return Legacy
	}
	return NFT
}

func (s *Selector) nftHint() bool {
	for _, f := range s.families {
		for _, chain := range hints {
			if found, err := s.nft.HasChain(f, "mangle", chain); err == nil && found {
				return true
			}
		}
	}
	return false
}

func (s *Selector) hintInLegacy() bool {
	changed := false
	for _, f := range s.families {
		// An error reads as a table that is not loaded: the choice falls to the other signs.
		info, _, _ := netfilter.ReadLegacyInfo(f, "mangle")
		changed = changed || info != s.mangle[f]
		s.mangle[f] = info
	}
	if changed {
		s.legacyHint = slices.ContainsFunc(s.families, func(f enforce.Family) bool {
			return s.mangle[f] != netfilter.LegacyInfo{} && hasLegacyHint(f)
		})
	}
	return s.legacyHint
}

// hasLegacyHint looks for a hint chain in a loaded mangle table.
func hasLegacyHint(f enforce.Family) bool {
	c, err := newCommand(Legacy, f)
	if err != nil {
		return false
	}
	var chains []string
	err = c.run(OpList, func() (err error) {
		chains, err = c.ipt.ListChains("mangle")
		return err
	})
	return err == nil && slices.ContainsFunc(chains, func(chain string) bool { return slices.Contains(hints, chain) })
}

// onlyLegacyWritten reports whether somebody uses the legacy filter table and nobody the nft one: without a kubelet, the
// best sign of what the node's agents use.
func (s *Selector) onlyLegacyWritten() bool {
	legacy := false
	for _, f := range s.families {
		if found, err := s.nft.HasChain(f, tableName, chainName); err == nil && found {
			return false
		}
		info, loaded, err := netfilter.ReadLegacyInfo(f, tableName)
		legacy = legacy || err == nil && loaded && !info.Empty()
	}
	return legacy
}

// command returns the current backend's command for a family. A command that can't be had is looked for again each time.
func (s *Selector) command(f enforce.Family) (*command, error) {
	if c := s.commands[f]; c != nil {
		return c, nil
	}
	c, err := newCommand(s.current, f)
	if err != nil {
		return nil, err
	}
	s.commands[f] = c
	return c, nil
}

// Version is the version of the current backend's iptables, empty until a command of it has run.
func (s *Selector) Version() string {
	var versions []string
	for _, f := range s.families {
		if c := s.commands[f]; c != nil && !slices.Contains(versions, c.version()) {
			versions = append(versions, c.version())
		}
	}
	return strings.Join(versions, ",")
}

// Choosing the backend: imds-guard writes where the node's other agents write.

package rules

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// Backend is a kernel interface that an iptables command writes to. The two are separate hooks: a DROP in either one wins over
// an ACCEPT in the other.
type Backend string

const (
	// Auto is not a backend; it asks for one to be chosen.
	Auto   Backend = "auto"
	NFT    Backend = "nft"
	Legacy Backend = "legacy"
)

// Backends lists every value that can be asked for.
var Backends = []Backend{Auto, NFT, Legacy}

// hints are the chains that the kubelet keeps in the mangle table of the backend that it uses, as a hint to others
// (kubernetes/enhancements, KEP-3178; kubernetes-sigs/iptables-wrappers looks for the same two).
var hints = []string{"KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"}

// Selector knows which backend is in use. It forks no command and waits for no lock, so no keeper of a table ever waits for it.
// It is safe for concurrent use.
type Selector struct {
	// Changed is called when the chosen backend changes. It may be nil, must not block, and must not be set after the first
	// choice.
	Changed func(from, to Backend)

	wish     Backend
	families []imds.Family

	mu       sync.Mutex
	current  Backend
	versions map[imds.Family]string // of the current backend's iptables
	nft      netfilter.NFT
	// mangle is the summary of the legacy mangle tables at the time they were last searched for hints, so that they are
	// searched again only after a change.
	mangle     map[imds.Family]netfilter.LegacyInfo
	legacyHint map[imds.Family]bool
}

// NewSelector chooses a backend. recorded is the one that an agent on this node used last, or empty; without better evidence it
// is chosen again. It is an error if no suitable iptables command is installed.
func NewSelector(wish Backend, families []imds.Family, recorded Backend) (*Selector, error) {
	s := &Selector{
		wish: wish, families: families, versions: map[imds.Family]string{},
		mangle: map[imds.Family]netfilter.LegacyInfo{}, legacyHint: map[imds.Family]bool{},
	}
	if !installed(NFT) && !installed(Legacy) || wish != Auto && !installed(wish) {
		return nil, fmt.Errorf("finding iptables: none of %s is in PATH; install the package that has them "+
			"(Debian and Ubuntu: iptables; Amazon Linux and Fedora: iptables-nft or iptables-legacy)", wantedNames(wish))
	}
	if recorded == NFT || recorded == Legacy {
		s.current = recorded
	}
	s.current = s.choose()
	return s, nil
}

func wantedNames(wish Backend) string {
	if wish != Auto {
		return binaryName(wish, imds.IPv4)
	}
	return binaryName(NFT, imds.IPv4) + ", " + binaryName(Legacy, imds.IPv4)
}

func installed(b Backend) bool {
	_, err := exec.LookPath(binaryName(b, imds.IPv4))
	return err == nil
}

// Current returns the backend in use.
func (s *Selector) Current() Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// Choose makes the choice again, and returns the backend in use from now on. It never loads a legacy table.
func (s *Selector) Choose() Backend {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.current
	s.current = s.choose()
	if s.current != before {
		s.versions = map[imds.Family]string{}
		if s.Changed != nil {
			s.Changed(before, s.current)
		}
	}
	return s.current
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
	for _, f := range s.families {
		info, loaded, err := netfilter.ReadLegacyInfo(f, "mangle")
		if err != nil {
			continue // the last result holds until it can be read again
		}
		if info == s.mangle[f] {
			continue
		}
		found := false
		for _, chain := range hints {
			if loaded && !found && err == nil {
				found, err = netfilter.HasLegacyChain(f, "mangle", chain)
			}
		}
		if err == nil {
			s.mangle[f], s.legacyHint[f] = info, found
		}
	}
	return slices.ContainsFunc(s.families, func(f imds.Family) bool { return s.legacyHint[f] })
}

// onlyLegacyWritten reports whether the legacy filter table is in use and the nft one is not: without a kubelet, that is the
// best evidence of what the node's agents use.
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

// ran records the version of a command that was run.
func (s *Selector) ran(c *command) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.backend == s.current {
		s.versions[c.family] = c.version()
	}
}

// Version returns the version of the current backend's iptables, empty until one of its commands has run.
func (s *Selector) Version() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var versions []string
	for _, f := range s.families {
		if v := s.versions[f]; v != "" && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	return strings.Join(versions, ",")
}

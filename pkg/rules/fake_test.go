package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/netfilter"
)

// fakeForward is a FORWARD that is as strict about positions, copies and handles as the kernel is, and that fails on demand.
type fakeForward struct {
	backend Backend
	chain   []fakeRule // from the top
	own     []fakeRule // the chain in our own table
	handles uint64
	// What makes the chain another than iptables' own.
	kind     string
	hook     uint32
	priority int32
	dormant  bool

	listErr  error                   // List fails
	lie      func([]string) []string // what List prints instead
	blind    bool                    // the kernel's list shows ours as rules of a form that is not known
	meddle   func()                  // called once, after the next write
	mute     bool                    // Summary fails
	lists    int
	inserts  int
	moves    int
	replaces int
}

// fakeRule is a rule as both iptables and the kernel have it.
type fakeRule struct {
	text   string // as `iptables -S` prints it, less the counters
	kernel netfilter.NFTRule
}

func newFake(b Backend) *fakeForward {
	return &fakeForward{backend: b, kind: "filter", hook: unix.NF_INET_FORWARD}
}

// written is a rule that iptables writes for imds-guard.
func (f *fakeForward) written(r Rule) fakeRule {
	f.handles++
	k := netfilter.NFTRule{
		Handle: f.handles, Names: true, Plain: true, Stops: true, In: r.In, Dest: r.Dest.Addr(), TCP: r.TCP, Target: r.Target,
		RejectWith: r.RejectWith, Expressions: []byte(r.String()),
	}
	return fakeRule{r.String(), k}
}

// other is somebody else's rule.
func (f *fakeForward) other(text string, k netfilter.NFTRule) fakeRule {
	f.handles++
	k.Handle = f.handles
	k.Names = strings.Contains(text, imds.IPv4.Endpoint().Addr().String())
	return fakeRule{"-A FORWARD " + text, k}
}

// above puts somebody else's rule at the top, below at the end.
func (f *fakeForward) above(text string, k netfilter.NFTRule) {
	f.chain = slices.Insert(f.chain, 0, f.other(text, k))
}

func (f *fakeForward) below(text string, k netfilter.NFTRule) {
	f.chain = append(f.chain, f.other(text, k))
}

func (f *fakeForward) flush() { f.chain = nil }

// texts is the chain from the top.
func (f *fakeForward) texts() (list []string) {
	for _, r := range f.chain {
		list = append(list, r.text)
	}
	return list
}

// wrote ends every write.
func (f *fakeForward) wrote() {
	if meddle := f.meddle; meddle != nil {
		f.meddle = nil
		meddle()
	}
}

func (f *fakeForward) Backend() Backend { return f.backend }

func (f *fakeForward) List(Backend) ([]string, error) {
	f.lists++
	if f.listErr != nil {
		return nil, f.listErr
	}
	lines := []string{"-P FORWARD ACCEPT -c 0 0"}
	for _, r := range f.chain {
		matches, target, found := strings.Cut(r.text, " -j ")
		if lines = append(lines, matches+" -c 0 0"); found {
			lines[len(lines)-1] += " -j " + target
		}
	}
	if f.lie != nil {
		lines = f.lie(lines)
	}
	return lines, nil
}

func (f *fakeForward) Insert(_ Backend, r Rule) error {
	f.inserts++
	f.chain = slices.Insert(f.chain, 0, f.written(r))
	f.wrote()
	return nil
}

func (f *fakeForward) Move(_ Backend, remove map[Rule]int, top []Rule) error {
	f.moves++
	left := slices.Clone(f.chain)
	for r, copies := range remove {
		for range copies {
			at := slices.IndexFunc(left, func(l fakeRule) bool { return l.text == r.String() })
			if at < 0 {
				return fmt.Errorf("deleting %q: no such rule", r)
			}
			left = slices.Delete(left, at, at+1)
		}
	}
	for i, r := range top {
		left = slices.Insert(left, i, f.written(r))
	}
	f.chain = left
	f.wrote()
	return nil
}

func (f *fakeForward) Kernel(s netfilter.Scope) (netfilter.NFTChain, error) {
	c := f.read(f.chain, s)
	c.Type, c.Hook, c.Priority, c.Dormant = f.kind, f.hook, f.priority, f.dormant
	return c, nil
}

func (f *fakeForward) OwnKernel(s netfilter.Scope) (netfilter.NFTChain, error) {
	c := f.read(f.own, s)
	c.Exists = f.own != nil
	c.Type, c.Hook = "filter", unix.NF_INET_FORWARD
	return c, nil
}

// read is a chain as far as the scope goes.
func (f *fakeForward) read(chain []fakeRule, s netfilter.Scope) netfilter.NFTChain {
	c := netfilter.NFTChain{Exists: true, Length: len(chain)}
	enough := false
	for i, r := range chain {
		k := r.kernel
		k.Position = i
		if f.blind {
			k.Plain, k.In, k.Target = false, "", ""
		}
		switch {
		case !enough && i < s.Top:
			c.Top = append(c.Top, k)
			enough = s.Enough(k)
		case k.Names:
			c.Below = append(c.Below, k)
		}
	}
	return c
}

func (f *fakeForward) Replace(top []netfilter.NFTRule, remove []uint64) error {
	return f.replace(&f.chain, top, remove)
}

func (f *fakeForward) MakeOwn(rules []netfilter.NFTRule) error {
	f.own = []fakeRule{}
	return f.replace(&f.own, rules, nil)
}

func (f *fakeForward) replace(chain *[]fakeRule, top []netfilter.NFTRule, remove []uint64) error {
	f.replaces++
	if len(remove) > netfilter.MaxDeleted {
		return unix.EMSGSIZE
	}
	left := slices.Clone(*chain)
	for _, handle := range remove {
		at := slices.IndexFunc(left, func(l fakeRule) bool { return l.kernel.Handle == handle })
		if at < 0 {
			return unix.ENOENT
		}
		left = slices.Delete(left, at, at+1)
	}
	for i, k := range top {
		if len(k.Expressions) == 0 {
			return unix.EINVAL
		}
		f.handles++
		k.Handle, k.Packets = f.handles, 0
		left = slices.Insert(left, i, fakeRule{string(k.Expressions), k})
	}
	*chain = left
	f.wrote()
	return nil
}

func (f *fakeForward) Summary() (info netfilter.LegacyInfo, ok bool, err error) {
	if f.mute {
		return info, false, errors.New("no summary")
	}
	info.Underflow[2] = uint32(100 * len(f.chain))
	info.Entries = uint32(4 + len(f.chain))
	return info, true, nil
}

// The removal of everything that the layer installs.

package route

import (
	"errors"
	"fmt"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Cleanup removes every piece of the layer of a family, and reads back that none is left. removed are the pieces that were
// there, in words. The policy rule goes first: without it the rest does nothing.
func Cleanup(f imds.Family) (removed []string, err error) {
	n := &node{family: f}
	defer n.close()
	return clean(&Layer{family: f, kernel: n})
}

func clean(l *Layer) (removed []string, err error) {
	before, err := l.read()
	switch {
	case err != nil && unsupported(err):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if before.sink.ours() && !before.sink.fit() {
		before.there = append(before.there, sink)
	}
	var after seen
	// The kernel may hold copies of the policy rule that differ in who is said to have made them.
	for range 5 {
		var errs []error
		for _, p := range []piece{policyRule, sinkRoute, blackhole, sink} {
			if p == sink && before.sink.index != 0 && !before.sink.ours() {
				continue
			}
			errs = append(errs, l.kernel.Delete(p))
		}
		after, err = l.read()
		if err = errors.Join(append(errs, err)...); err == nil && len(after.there) == 0 {
			break
		}
	}
	if err == nil && len(after.there) > 0 {
		err = errors.New("pieces keep coming back; is an agent still running on this node?")
	}
	for _, p := range before.there {
		removed = append(removed, string(p))
	}
	if err != nil {
		return removed, fmt.Errorf("cleaning the route layer of %s: %w", l.family, err)
	}
	return removed, nil
}

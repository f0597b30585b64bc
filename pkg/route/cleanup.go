// Removing everything that the layer installs.

package route

import (
	"errors"
	"fmt"
	"slices"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Cleanup removes every piece of a family's layer, reads back that none is left, and returns descriptions of the pieces that it
// found.
func Cleanup(f imds.Family) (removed []string, err error) {
	n := &node{family: f}
	defer n.close()
	removed, err = clean(&Layer{family: f, kernel: n})
	if err != nil {
		return removed, fmt.Errorf("cleaning the route layer of %s: %w", f, err)
	}
	return removed, nil
}

// clean retries as often as another process may plausibly write in between. It deletes the rules first: without them the rest
// has no effect.
func clean(l *Layer) (removed []string, err error) {
	for try := range 5 {
		s, err := l.read()
		switch {
		case err != nil && unsupported(err):
			return nil, nil
		case err != nil:
			return removed, err
		}
		if try == 0 {
			removed = s.pieces()
		}
		var errs []error
		for _, r := range s.rules {
			errs = append(errs, l.kernel.DeleteRule(r))
		}
		for _, r := range slices.Concat(s.inTheWay, s.ourRoutes) {
			errs = append(errs, l.kernel.DeleteRoute(r))
		}
		others, err := l.kernel.DeleteSink()
		if others > 0 {
			removed = append(removed, "a sink under another name")
		}
		left := len(s.rules)+len(s.inTheWay)+len(s.ourRoutes) > 0 || s.sink.ours()
		if err := errors.Join(append(errs, err)...); err != nil || !left {
			return removed, err
		}
	}
	return removed, errors.New("pieces keep coming back; is an agent still running on this node?")
}

// pieces describes what is there and counts as ours, including an unfit sink.
func (s seen) pieces() (words []string) {
	for _, p := range s.there {
		words = append(words, string(p))
	}
	if s.sink.ours() && !s.sink.fit() {
		words = append(words, string(sink))
	}
	return append(words, s.intruders()...)
}

// One family's layer: looking, and repairing what the look found.

package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/pkg/imds"
	"github.com/imds-guard/imds-guard/pkg/layer"
	"github.com/imds-guard/imds-guard/pkg/policy"
)

// Layer is the layer of one family. The only thing it remembers of earlier looks is how many packets the sink had dropped.
// Every look reads every piece from the kernel, and pods' packets count as stopped only if all pieces are in place.
type Layer struct {
	family  imds.Family
	kernel  kernel
	dropped dropped
}

// New makes the layer of one family.
func New(f imds.Family) *Layer { return &Layer{family: f, kernel: &node{family: f}} }

// ID implements guard.Layer.
func (l *Layer) ID() layer.ID { return layer.ID{Name: LayerName, Family: l.family} }

// seen is what a look found.
type seen struct {
	there []piece
	sink  link
	// before are the policy rules, and the routes in the table of local addresses, that are evaluated before ours and may lead
	// packets elsewhere. They belong to others.
	before []string
	// rules are all rules that lead into our table, ours or strays, and inTheWay the routes to the endpoint in that table that
	// are not ours. Any of them may lead packets elsewhere, or the node's own packets into the sink: IPv6 skips a destination's
	// routes if one of them is for another source (net/ipv6/ip6_fib.c, fib6_node_lookup_1), and IPv4 sorts by tos before it
	// sorts by metric (net/ipv4/fib_trie.c). The table is ours, so they are ours to delete.
	rules    []rule
	inTheWay []routeEntry
	// ourRoutes are the routes in our table that are ours.
	ourRoutes []routeEntry
	// withoutSink says why no packet can reach the sink, so that only the blackhole stops them; empty if they can.
	withoutSink string
}

// missing returns the missing pieces, in the order in which they are put back.
func (s seen) missing() []piece {
	return slices.DeleteFunc(slices.Clone(pieces), func(p piece) bool {
		return slices.Contains(s.there, p) || p == sinkRoute && s.withoutSink != ""
	})
}

// Look implements guard.Layer. The policy makes no difference: everything that the node forwards to the endpoint is stopped.
func (l *Layer) Look(policy.Policy, func(why string)) layer.Finding {
	s, err := l.read()
	r := layer.Reading{State: layer.Enforced, AnyInterface: true, Blocked: l.dropped.total}
	switch missing := s.missing(); {
	case err != nil && unsupported(err):
		r.State, r.Detail = layer.Unsupported, fmt.Sprintf("the kernel has no policy routing for %s", l.family)
		if !l.family.Present() {
			r.NoPath, r.Detail = true, fmt.Sprintf("the kernel runs without %s", l.family)
		}
		return layer.Finding{Reading: r}
	case err != nil:
		r.State, r.Detail, r.Err = layer.Unknown, err.Error(), err
		return layer.Finding{Reading: r}
	case len(missing) > 0:
		r.State, r.Detail = layer.Missing, notThere(missing, s.sink)
	case len(s.before)+len(s.intruders()) > 0:
		r.State, r.Detail = Shadowed, s.shadow()
	default:
		r.Detail = s.withoutSink
	}
	for _, p := range s.there {
		r.Rules = append(r.Rules, p.text(l.family))
	}
	return layer.Finding{Reading: r, Plan: s}
}

// read reads every piece.
func (l *Layer) read() (s seen, err error) {
	rules, err := l.kernel.Rules()
	if err != nil {
		return s, err
	}
	routes, err := l.kernel.Routes(table, 0)
	if err != nil {
		return s, err
	}
	local, err := l.kernel.Routes(unix.RT_TABLE_LOCAL, unix.RTN_UNICAST)
	if err != nil {
		return s, err
	}
	if s.sink, err = l.kernel.Sink(); err != nil {
		return s, err
	}
	if s.sink.ours() {
		l.dropped.add(s.sink.index, s.sink.dropped)
	}
	s.judgeRules(rules)
	s.judgeRoutes(l.family, routes)
	endpoint := l.family.Endpoint().Addr()
	for _, r := range local {
		if r.to.Contains(endpoint) {
			s.before = append(s.before, r.String())
		}
	}
	if s.sink.fit() {
		s.there = append(s.there, sink)
		if s.sink.disabled {
			s.withoutSink = fmt.Sprintf("by the blackhole alone: IPv6 is disabled on %s, so FORWARD sees none of these packets",
				namesOf(l.family).sink)
		}
	}
	slices.SortFunc(s.there, func(a, b piece) int { return slices.Index(pieces, a) - slices.Index(pieces, b) })
	return s, nil
}

// judgeRules finds the rules that are evaluated before ours, or would be if ours existed: the kernel puts a new rule after
// those of the same priority (net/core/fib_rules.c, fib_newrule).
func (s *seen) judgeRules(rules []rule) {
	found := false
	for _, r := range rules {
		switch {
		case r.ours && !found:
			found = true
			s.there = append(s.there, policyRule)
		case r.diverts && r.priority <= priority && !found:
			s.before = append(s.before, r.String())
		}
		if r.ours || r.stray {
			s.rules = append(s.rules, r)
		}
	}
}

func (s *seen) judgeRoutes(f imds.Family, routes []routeEntry) {
	for _, r := range routes {
		switch {
		case r.to != f.Endpoint():
		case r.plain && r.kind == unix.RTN_BLACKHOLE && r.metric == blackholeMetric:
			s.there, s.ourRoutes = append(s.there, blackhole), append(s.ourRoutes, r)
		case r.plain && r.kind == unix.RTN_UNICAST && r.metric == sinkMetric && r.link == s.sink.index && s.sink.ours():
			s.ourRoutes = append(s.ourRoutes, r)
			if !s.sink.fit() {
				continue // it is removed with the sink
			}
			s.there = append(s.there, sinkRoute)
			if r.dead {
				s.withoutSink = "by the blackhole alone: routes without a carrier are ignored (sysctl ignore_routes_with_linkdown), " +
					"so that FORWARD sees none of these packets"
			}
		default:
			s.inTheWay = append(s.inTheWay, r)
		}
	}
}

// notThere describes what is missing.
func notThere(missing []piece, at link) string {
	var words []string
	for _, p := range missing {
		word := string(p)
		if p == sink && at.unfit != "" {
			word += " (" + at.unfit + ")"
		}
		words = append(words, word)
	}
	be := " is not there"
	if len(words) > 1 {
		be = " are not there"
	}
	return strings.Join(words, " and ") + be
}

// shadow describes what is evaluated before the pieces.
func (s seen) shadow() string {
	return strings.Join(append(slices.Clone(s.before), s.intruders()...), " and ") + " may lead packets elsewhere"
}

// intruders describes what is in our table, or leads into it, but is not ours.
func (s seen) intruders() (words []string) {
	for _, r := range s.rules {
		if r.stray {
			words = append(words, r.String())
		}
	}
	for _, r := range s.inTheWay {
		words = append(words, r.String())
	}
	return words
}

// unsupported reports whether an error means that the kernel lacks the protocol, or policy routing for it.
func unsupported(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP)
}

// Repair implements guard.Layer.
func (l *Layer) Repair(_ policy.Policy, f layer.Finding) error {
	s, ok := f.Plan.(seen)
	if !ok {
		return errors.New("repairing the route layer: the finding is not its own")
	}
	var errs []error
	for _, r := range s.inTheWay {
		errs = append(errs, l.kernel.DeleteRoute(r))
	}
	missing := s.missing()
	if slices.ContainsFunc(s.rules, func(r rule) bool { return r.stray }) {
		// When deleting a rule the kernel does not compare everything, and in particular not `not`, so a stray might not be
		// told from ours. So all are deleted, and ours is put back below.
		for _, r := range s.rules {
			errs = append(errs, l.kernel.DeleteRule(r))
		}
		if !slices.Contains(missing, policyRule) {
			missing = slices.Insert(missing, 0, policyRule)
		}
	}
	for _, p := range missing {
		errs = append(errs, l.put(p, &s))
	}
	if len(s.before) > 0 {
		errs = append(errs, fmt.Errorf("putting ours first: %s may lead packets elsewhere and is not ours to delete",
			strings.Join(s.before, " and ")))
	}
	return errors.Join(errs...)
}

// put puts one piece back. An unfit sink is recreated, and the route into it as well.
func (l *Layer) put(p piece, s *seen) error {
	if p == sink {
		if s.sink.foreign {
			return fmt.Errorf("making the sink: the name %s is taken: %s; rename that link", namesOf(l.family).sink, s.sink.unfit)
		}
		if _, err := l.kernel.DeleteSink(); err != nil {
			return err
		}
	}
	if p == sinkRoute && !s.sink.fit() {
		return nil // there is nothing to lead into, and the failure to make the sink was reported
	}
	err := l.kernel.Make(p, s.sink.index)
	if p == sink && err == nil {
		s.sink, err = l.kernel.Sink()
	}
	if p == sinkRoute && s.sink.disabled {
		return nil // the next look finds out that this route is not possible
	}
	return err
}

// dropped adds up the packets dropped by a family's sinks, each of which starts counting at zero.
type dropped struct {
	total, last uint64
	index       int
}

// add takes in the count of the sink with the given index.
func (d *dropped) add(index int, now uint64) {
	if index == d.index && now >= d.last {
		d.total += now - d.last
	} else {
		d.total += now
	}
	d.index, d.last = index, now
}

// Package ifwatch turns netlink into a picture of the interfaces by which packets of pods enter FORWARD, and says which of
// them no --interface pattern matches.
package ifwatch

// Package ifwatch uses netlink to keep a picture of the interfaces through which pods' packets enter FORWARD, and says which of
// them no --interface pattern matches.
package ifwatch

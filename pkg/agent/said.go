// Errors that persist are logged once, when they begin.

package agent

// said is the last error of something that is tried again and again; the zero value means none.
type said string

// isNew reports whether an error differs from the last one.
func (s *said) isNew(err error) bool {
	last := *s
	if *s = ""; err != nil {
		*s = said(err.Error())
	}
	return err != nil && *s != last
}

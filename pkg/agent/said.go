// What goes on for long is logged when it begins.

package agent

// said is the last error of something that is tried again and again. The zero value is none.
type said string

// isNew reports whether an error is another one than the last.
func (s *said) isNew(err error) bool {
	last := *s
	if *s = ""; err != nil {
		*s = said(err.Error())
	}
	return err != nil && *s != last
}

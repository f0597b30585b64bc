// Asking a goroutine for another pass.

package agent

// waker has room for one wake: any number of calls before a pass count as one. It may be used from any goroutine.
type waker chan struct{}

func newWaker() waker { return make(waker, 1) }

// Wake never blocks.
func (w waker) Wake() {
	select {
	case w <- struct{}{}:
	default:
	}
}

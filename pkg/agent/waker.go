// How a goroutine is asked for another pass.

package agent

// waker has room for one wake: any number of them before a pass are one. It may be used from any goroutine.
type waker chan struct{}

func newWaker() waker { return make(waker, 1) }

// Wake never blocks.
func (w waker) Wake() {
	select {
	case w <- struct{}{}:
	default:
	}
}

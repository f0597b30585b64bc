// A scrape: what it may cost, and that none holds up another.

package metrics

import (
	"bytes"
	"net/http"
)

// maxScrapes bounds the scrapes that are made at once. The others wait, in the order in which they came.
const maxScrapes = 4

// scrapes lets h write answers into memory, maxScrapes at once, and sends each when it is whole. So a client that reads
// slowly, or not at all, takes up no more than its own connection; were h to wait for it, four of them would stop all others.
func scrapes(h http.Handler) http.Handler {
	making := make(chan struct{}, maxScrapes)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case making <- struct{}{}:
		case <-r.Context().Done():
			return
		}
		a := answer{header: w.Header(), code: http.StatusOK}
		func() {
			defer func() { <-making }()
			h.ServeHTTP(&a, r)
		}()
		w.WriteHeader(a.code)
		_, _ = a.body.WriteTo(w) // the client has gone, and nobody is there to be told
	})
}

// answer implements http.ResponseWriter.
type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

// Header implements http.ResponseWriter.
func (a *answer) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(code int) { a.code = code }

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

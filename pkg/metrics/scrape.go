// Scrapes: bounding their cost, and keeping them from holding up each other.

package metrics

import (
	"bytes"
	"net/http"
)

// maxScrapes bounds how many scrapes are processed at once. The others wait, in order of arrival.
const maxScrapes = 4

// scrapes lets h write its answers into memory, at most maxScrapes at once, and sends each when it is complete. So a client
// that reads slowly or not at all blocks only its own connection; if h had to wait for clients, four slow ones would stop all
// others.
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
		_, _ = a.body.WriteTo(w) // on an error the client is gone, and there is nobody to tell
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

//go:build linux

// The metadata service: testnode's stand-in, with a log.

package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/test/e2e/witness"
)

// serveIMDS logs each connection as soon as it is there, and each request with the pod that it says it is from. "Nobody
// reached it" is read from this log.
func serveIMDS(arguments []string) error {
	if len(arguments) != 1 {
		return errors.New("usage: tool imds ADDRESS")
	}
	documents := &testnode.IMDS{}
	server := &http.Server{
		Addr:              arguments[0],
		ReadHeaderTimeout: 10 * time.Second,
		ConnState: func(conn net.Conn, state http.ConnState) {
			if state == http.StateNew {
				fmt.Println(witness.Connected(conn.RemoteAddr().String()))
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Println(witness.Requested(r.RemoteAddr, r.Header.Get(witness.Header), r.Method, r.URL.Path))
			documents.ServeHTTP(w, r)
		}),
	}
	return fmt.Errorf("serving the metadata: %w", server.ListenAndServe())
}

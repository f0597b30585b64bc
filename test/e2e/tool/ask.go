//go:build linux

// The pod that doesn't stop asking.

package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/imds-guard/imds-guard/test/e2e/witness"
)

// asker counts. Its lines are what the tests read: one that says which pod it is, one a second with both counts, and one for
// each answer, at once.
type asker struct {
	pod     string // its UID
	address string
	timeout time.Duration

	mu                sync.Mutex
	attempts, answers int
}

// ask asks until it is killed. A try doesn't wait for the one before it, and has a connection of its own: behind a rule
// that drops, each ends only by its time-out.
func ask(arguments []string) error {
	flags := flag.NewFlagSet("ask", flag.ContinueOnError)
	address := flags.String("address", "169.254.169.254:80", "the metadata service")
	every := flags.Duration("every", 100*time.Millisecond, "time between two tries")
	timeout := flags.Duration("timeout", time.Second, "how long a try waits for an answer")
	if err := flags.Parse(arguments); err != nil {
		return err
	}

	a := &asker{pod: os.Getenv("POD_UID"), address: *address, timeout: *timeout}
	fmt.Println(witness.Asks(a.pod, os.Getenv("POD_IP")))
	go func() {
		for range time.Tick(time.Second) {
			a.report()
		}
	}()
	for try := 0; ; try++ {
		go a.try(try%2 == 1)
		time.Sleep(*every)
	}
}

// try asks once, by IMDSv1 or IMDSv2. A connection is an answer already: packets came back.
func (a *asker) try(v2 bool) {
	ctx, cancel := context.WithTimeout(context.Background(), a.timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", a.address)

	if !a.count(conn, err) {
		return
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(a.timeout))
	fmt.Println(witness.Stamp(), "said to", conn.LocalAddr(), a.read(conn, v2))
}

func (a *asker) count(conn net.Conn, err error) (answered bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.attempts++
	if err == nil {
		a.answers++
		fmt.Println(witness.Answered(conn.LocalAddr().String()))
		return true
	}
	if timeout := net.Error(nil); !errors.As(err, &timeout) || !timeout.Timeout() {
		fmt.Println(witness.Stamp(), "no answer:", err)
	}
	return false
}

// read returns what the service says, for the log.
func (a *asker) read(conn net.Conn, v2 bool) string {
	method, path := http.MethodGet, "/latest/meta-data/iam/security-credentials/"
	if v2 {
		method, path = http.MethodPut, "/latest/api/token"
	}
	request, err := http.NewRequest(method, "http://"+conn.RemoteAddr().String()+path, nil)
	if err != nil {
		return err.Error()
	}
	request.Header.Set("X-aws-ec2-metadata-token-ttl-seconds", "60")
	request.Header.Set(witness.Header, a.pod)
	if err := request.Write(conn); err != nil {
		return err.Error()
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), request)
	if err != nil {
		return err.Error()
	}
	defer response.Body.Close()
	document, err := io.ReadAll(response.Body)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%s %s: %d %.60q", method, path, response.StatusCode, document)
}

func (a *asker) report() {
	a.mu.Lock()
	defer a.mu.Unlock()
	fmt.Println(witness.Counted(a.attempts, a.answers))
}

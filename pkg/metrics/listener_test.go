// What pods can do to the port: real sockets, with the addresses of the loopback network as sources.

package metrics

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialFrom connects from an address, with the least room for what it is sent. The server may have closed the connection
// before it is known here (ECONNRESET); then another is made.
func dialFrom(t *testing.T, from, to string) net.Conn {
	t.Helper()
	d := net.Dialer{
		LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)},
		Control: func(_, _ string, c syscall.RawConn) error {
			return setOptions(c, option{unix.SOL_SOCKET, unix.SO_RCVBUF, 1})
		},
	}
	c, err := d.Dial("tcp", to)
	for errors.Is(err, unix.ECONNRESET) {
		c, err = d.Dial("tcp", to)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestIdleConnections: a pod that holds all the connections it can get locks nobody else out.
func TestIdleConnections(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	s := serve(t, &Server{Address: address})
	s.awaitCode(200, "http://"+address+"/healthz", "", "")
	for range 2 * maxConnections {
		dialFrom(t, "127.0.0.2", address)
	}
	if code, body := s.get("http://"+address+"/metrics", "", ""); code != 200 {
		t.Errorf("/metrics: %d %q", code, body)
	}
}

// TestUnreadAnswers: clients that don't read hold up nobody else.
func TestUnreadAnswers(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	s := serve(t, &Server{Address: address})
	s.awaitCode(200, "http://"+address+"/healthz", "", "")
	for range perSource {
		c := dialFrom(t, "127.0.0.2", address)
		if _, err := fmt.Fprint(c, strings.Repeat("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 100)); err != nil {
			t.Fatal(err)
		}
	}
	for range 50 { // at some of these all are held up, if they can be
		if code, body := s.get("http://"+address+"/metrics", "", ""); code != 200 {
			t.Fatalf("/metrics: %d %q", code, body)
		}
	}
}

// TestUntakenAnswer: the kernel keeps little of what a client doesn't read, and not for long.
func TestUntakenAnswer(t *testing.T) {
	t.Parallel()
	l, err := listen(t.Context(), "127.0.0.1:0", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client := dialFrom(t, "127.0.0.2", l.Addr().String())
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for { // until nothing more is taken for a while
		if err := c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, _ := c.Write(make([]byte, 1<<20))
		if sent += n; n == 0 && sent > 0 {
			break
		}
	}
	if sent > 4*sendBuffer {
		t.Errorf("%d bytes that nobody read were sent", sent)
	}
	c.Close()
	s := served{t: t}
	s.await("the kernel has forgotten the answer", func() bool { return !keeps(t, l.Addr(), client.LocalAddr()) })
}

// keeps tells whether the kernel keeps anything that is to be sent from one address to another: column tx_queue of
// Documentation/networking/proc_net_tcp.rst.
func keeps(t *testing.T, from, to net.Addr) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	local, remote := fmt.Sprintf(":%04X", from.(*net.TCPAddr).Port), fmt.Sprintf(":%04X", to.(*net.TCPAddr).Port)
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if strings.HasSuffix(f[1], local) && strings.HasSuffix(f[2], remote) && !strings.HasPrefix(f[4], "00000000:") {
			return true
		}
	}
	return false
}

// TestScrapesWait: no scrape is refused because there are others.
func TestScrapesWait(t *testing.T) {
	t.Parallel()
	begun, finish := make(chan struct{}), make(chan struct{})
	address := freeAddress(t)
	server := &http.Server{Addr: address, Handler: scrapes(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		begun <- struct{}{}
		<-finish
		w.Header().Set("X-Test", "yes")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "tea")
	}))}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(l) }()
	defer server.Close()
	answers := make(chan string)
	for range 3 * maxScrapes {
		go func() {
			response, err := http.Get("http://" + address)
			if err != nil {
				answers <- err.Error()
				return
			}
			defer response.Body.Close()
			answers <- response.Status + " " + response.Header.Get("X-Test")
		}()
	}
	for range maxScrapes {
		<-begun
	}
	select {
	case <-begun:
		t.Errorf("more than %d are made at once", maxScrapes)
	default:
	}
	go func() {
		for range 2 * maxScrapes {
			<-begun
		}
	}()
	close(finish)
	for range 3 * maxScrapes {
		if got := <-answers; got != "418 I'm a teapot yes" {
			t.Errorf("the answer is %q", got)
		}
	}
}

// The server as seen from outside: real sockets, real TLS, real files.

package metrics

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/guard"
)

const (
	user, password = "prometheus", "example"
	// users is basic authentication by the two; the hash is bcrypt's, as cheap as it can be.
	users = "basic_auth_users:\n  prometheus: $2a$04$ntXp6GS2UR4PouQMf3ReWexLPnUvo97o4hDFLEtgTBu2X0X3jUgEm\n"
	// secure is TLS by what writeCertificate writes.
	secure = "tls_server_config:\n  cert_file: cert.pem\n  key_file: key.pem\n"
)

// served is a running server.
type served struct {
	*Server
	t      *testing.T
	log    *testnode.Log
	client *http.Client
}

// until returns a pause that ends when the test sends a tick, which is taken only by a server that pauses; without ticks
// that is for good.
func until(tick <-chan struct{}) func(context.Context, time.Duration) bool {
	return func(ctx context.Context, _ time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-tick:
			return true
		}
	}
}

// serve runs a server until the end of the test, at which it must stop.
func serve(t *testing.T, s *Server) *served {
	t.Helper()
	if s.pause == nil {
		s.pause = until(nil)
	}
	m := New(Build{Version: "test", Commit: "test", Mode: "enforce"}, nil, nil)
	m.Status = func() guard.Status { return guard.Status{} }
	log := &testnode.Log{}
	s.Metrics, s.Log = m, slog.New(slog.NewTextHandler(log, nil))
	s.Healthy = func() error { return nil }
	s.Ready = func() error { return errors.New("the rules are not there") }
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { s.Run(ctx); close(done) }()
	t.Cleanup(func() {
		stop()
		select {
		case <-done:
		case <-time.After(time.Minute):
			t.Error("the server did not stop")
		}
		if t.Failed() {
			t.Logf("the server's log:\n%s", log)
		}
	})
	return &served{s, t, log, &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}}
}

// freeAddress returns an unused one, on a loopback address of the test's own that no other program will use by chance.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.91.69.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// get returns the status code and the body; 0 if there was no answer.
func (s *served) get(url, user, password string) (int, string) {
	s.t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if user != "" {
		request.SetBasicAuth(user, password)
	}
	response, err := s.client.Do(request)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error()
	}
	return response.StatusCode, string(body)
}

// answer is get for a server that answers, however long it takes it: a wrong password costs much time.
func (s *served) answer(url, user, password string) (code int, body string) {
	s.t.Helper()
	s.await(url+" is answered", func() bool {
		code, body = s.get(url, user, password)
		return code != 0
	})
	return code, body
}

func (s *served) await(what string, is func() bool) {
	s.t.Helper()
	for start := time.Now(); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > time.Minute {
			s.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// awaitCode waits for an answer.
func (s *served) awaitCode(want int, url, user, password string) {
	s.t.Helper()
	s.await(fmt.Sprintf("%s is answered by %d", url, want), func() bool {
		code, _ := s.get(url, user, password)
		return code == want
	})
}

// mustLog fails the test unless exactly n lines have the words.
func (s *served) mustLog(n int, words ...string) {
	s.t.Helper()
	if got := s.log.Count(words...); got != n {
		s.t.Errorf("%d lines of the log have %q, want %d", got, words, n)
	}
}

// mustLogLines fails the test if the log has other lines than those that were asked for.
func (s *served) mustLogLines(n int) { s.t.Helper(); s.mustLog(n, "msg=") }

// writeConfig replaces a file at once, as the kubelet does.
func writeConfig(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// writeCertificate writes cert.pem and key.pem for the host of an address.
func writeCertificate(t *testing.T, dir, address string) *x509.CertPool {
	t.Helper()
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), IPAddresses: []net.IP{net.ParseIP(host)},
		IsCA: true, BasicConstraintsValid: true,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	writeConfig(t, filepath.Join(dir, "cert.pem"), string(chain))
	writeConfig(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(chain)
	return pool
}

func TestPlain(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	s := serve(t, &Server{Address: address})
	s.awaitCode(200, "http://"+address+"/healthz", "", "")
	if code, body := s.get("http://"+address+"/readyz", "", ""); code != 503 || body != "the rules are not there\n" {
		t.Errorf("/readyz: %d %q", code, body)
	}
	code, body := s.get("http://"+address+"/metrics", "", "")
	if code != 200 || !strings.Contains(body, "imds_guard_protected 0") {
		t.Errorf("/metrics: %d %q", code, body)
	}
	s.mustLog(1, `msg="serving metrics"`, "address="+address)
	s.mustLogLines(1)
}

func TestHealthAddress(t *testing.T) {
	t.Parallel()
	address, health := freeAddress(t), freeAddress(t)
	file := filepath.Join(t.TempDir(), "web.yaml")
	writeConfig(t, file, users)
	s := serve(t, &Server{Address: address, HealthAddress: health, WebConfigFile: file})
	s.awaitCode(200, "http://"+health+"/healthz", "", "")
	s.awaitCode(503, "http://"+health+"/readyz", "", "")
	if code, body := s.get("http://"+health+"/metrics", user, password); code != 404 {
		t.Errorf("/metrics at the health address: %d %q", code, body)
	}
	s.awaitCode(401, "http://"+address+"/healthz", "", "")
	s.awaitCode(200, "http://"+address+"/healthz", user, password)
	s.mustLog(1, `msg="serving metrics"`, "address="+address)
	s.mustLog(1, `msg="serving health"`, "address="+health)
	s.mustLogLines(2)
}

func TestHealthAddressAlone(t *testing.T) {
	t.Parallel()
	health := freeAddress(t)
	s := serve(t, &Server{HealthAddress: health})
	s.awaitCode(200, "http://"+health+"/healthz", "", "")
	s.mustLogLines(1)
}

func TestTLSAndPassword(t *testing.T) {
	t.Parallel()
	address, dir := freeAddress(t), t.TempDir()
	file := filepath.Join(dir, "web.yaml")
	pool := writeCertificate(t, dir, address)
	writeConfig(t, file, secure+users)
	tick := make(chan struct{})
	s := serve(t, &Server{Address: address, WebConfigFile: file, pause: until(tick)})
	trusting := &http.Transport{DisableKeepAlives: true, ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	s.client.Transport = trusting

	url := "https://" + address + "/metrics"
	s.awaitCode(200, url, user, password)
	if code, body := s.answer(url, user, "wrong"); code != 401 || strings.Contains(body, prefix) {
		t.Errorf("with a wrong password: %d %q", code, body)
	}
	if code, body := s.answer(url, "nobody", password); code != 401 || strings.Contains(body, prefix) {
		t.Errorf("with a wrong user: %d %q", code, body)
	}
	if code, body := s.answer(url, "", ""); code != 401 || strings.Contains(body, prefix) {
		t.Errorf("without a password: %d %q", code, body)
	}
	if code, body := s.answer("http://"+address+"/metrics", user, password); code != 400 || strings.Contains(body, prefix) {
		t.Errorf("by plain HTTP: %d %q", code, body)
	}
	s.client.Transport = &http.Transport{DisableKeepAlives: true}
	if code, body := s.get(url, user, password); code != 0 || !strings.Contains(body, "certificate") {
		t.Errorf("with a certificate that the client does not trust: %d %q", code, body)
	}

	// A certificate that is renewed is used without a restart.
	trusting.TLSClientConfig = &tls.Config{RootCAs: writeCertificate(t, dir, address)}
	s.client.Transport = trusting
	s.awaitCode(200, url, user, password)
	for range 2 { // the second is taken when the look after the first is over
		tick <- struct{}{}
	}
	s.mustLog(1, `msg="serving metrics"`)
	s.mustLogLines(1)
}

// TestHTTP1Only: what an HTTP/2 connection may ask for at once is not bounded by the number of connections.
func TestHTTP1Only(t *testing.T) {
	t.Parallel()
	address, dir := freeAddress(t), t.TempDir()
	file := filepath.Join(dir, "web.yaml")
	pool := writeCertificate(t, dir, address)
	writeConfig(t, file, secure)
	s := serve(t, &Server{Address: address, WebConfigFile: file})
	offer := &tls.Config{RootCAs: pool, NextProtos: []string{"h2", "http/1.1"}}
	var negotiated string
	s.await("the server answers", func() bool {
		connection, err := tls.Dial("tcp", address, offer)
		if err != nil {
			return false
		}
		defer connection.Close()
		negotiated = connection.ConnectionState().NegotiatedProtocol
		return true
	})
	if negotiated != "http/1.1" {
		t.Errorf("the server speaks %q", negotiated)
	}
}

func TestConfigBrokenLater(t *testing.T) {
	t.Parallel()
	for name, broken := range map[string]string{
		"no YAML": "tls_server_config: [", "unknown field": "tls: {}\n",
		"no such certificate": "tls_server_config:\n  cert_file: x\n  key_file: y\n",
		"no hash":             "basic_auth_users:\n  prometheus: example\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address, health := freeAddress(t), freeAddress(t)
			file := filepath.Join(t.TempDir(), "web.yaml")
			writeConfig(t, file, users)
			tick, pauses := make(chan struct{}), atomic.Int32{}
			s := serve(t, &Server{Address: address, HealthAddress: health, WebConfigFile: file, pause: func(ctx context.Context, d time.Duration) bool {
				pauses.Add(1)
				return until(tick)(ctx, d)
			}})
			url := "http://" + address + "/metrics"
			s.awaitCode(200, url, user, password)

			writeConfig(t, file, broken)
			tick <- struct{}{}
			s.await("it is reported", func() bool {
				return s.log.Count("serving metrics failed", "reading the web configuration", file) == 1
			})
			for range 3 {
				if code, _ := s.get(url, user, password); code == 200 {
					t.Error("metrics are still served, with a configuration that can't be read")
				}
			}
			if code, _ := s.get("http://"+health+"/healthz", "", ""); code != 200 {
				t.Errorf("/healthz: %d", code)
			}

			tick <- struct{}{}
			// The pauses are one while it served, one after the failure, and one after this try.
			s.await("it was tried in vain once more", func() bool { return pauses.Load() == 3 })
			writeConfig(t, file, users)
			tick <- struct{}{}
			s.awaitCode(200, url, user, password)
			s.awaitCode(401, url, user, "wrong")
			s.mustLog(1, "serving metrics failed")
			s.mustLog(2, `msg="serving metrics"`)
			s.mustLog(1, `msg="serving health"`)
			s.mustLogLines(4)
		})
	}
}

// TestTLSLater: once the file asks for TLS, passwords must no longer be accepted in clear text.
func TestTLSLater(t *testing.T) {
	t.Parallel()
	address, dir := freeAddress(t), t.TempDir()
	file := filepath.Join(dir, "web.yaml")
	pool := writeCertificate(t, dir, address)
	writeConfig(t, file, users)
	tick := make(chan struct{})
	s := serve(t, &Server{Address: address, WebConfigFile: file, pause: until(tick)})
	s.client.Transport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	s.awaitCode(200, "http://"+address+"/metrics", user, password)
	writeConfig(t, file, secure+users)
	tick <- struct{}{}
	s.awaitCode(200, "https://"+address+"/metrics", user, password)
	s.awaitCode(400, "http://"+address+"/metrics", user, password)
	s.mustLog(2, `msg="serving metrics"`)
	s.mustLog(0, "failed")
}

func TestTakenPort(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.91.69.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address, health, tick := taken.Addr().String(), freeAddress(t), make(chan struct{})
	s := serve(t, &Server{Address: address, HealthAddress: health, pause: until(tick)})
	s.awaitCode(200, "http://"+health+"/healthz", "", "")
	s.await("it is reported", func() bool { return s.log.Count("serving metrics failed", "address already in use") == 1 })
	for range 3 { // one attempt each, which is not logged again
		tick <- struct{}{}
	}
	taken.Close()
	close(tick)
	s.awaitCode(200, "http://"+address+"/metrics", "", "")
	s.mustLog(1, "serving metrics failed", "the rules are not affected")
	s.mustLogLines(3)
}

// TestNoise: what strangers send does not reach the log.
func TestNoise(t *testing.T) {
	t.Parallel()
	address, dir := freeAddress(t), t.TempDir()
	file := filepath.Join(dir, "web.yaml")
	pool := writeCertificate(t, dir, address)
	writeConfig(t, file, secure+users)
	s := serve(t, &Server{Address: address, WebConfigFile: file})
	s.client.Transport = &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}}
	s.awaitCode(401, "https://"+address+"/metrics", user, "wrong")
	for range 10 {
		s.awaitCode(400, "http://"+address+"/metrics", "", "")
		connection, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(connection, "no handshake at all\r\n\r\n")
		_, _ = io.ReadAll(connection)
		connection.Close()
	}
	s.mustLogLines(1)
}

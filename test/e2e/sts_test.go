//go:build e2e

// A stand-in for AWS's Security Token Service: it gives a role to who brings a token of the cluster's, after checking the
// token as AWS does, and says who holds given credentials.

package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"html"
	"math/big"
	"net"
	"net/http"
	"os"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/sys/unix"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// As in node/env.sh: the gateway, which pods reach as they reach anything outside.
const outsideIP = "10.77.0.1"

const account = "111122223333"

// STS is the stand-in, on the gateway's port 443.
type STS struct {
	ca      []byte // PEM
	node    *Node
	subject string // whose token gets the role

	mu       sync.Mutex
	sessions map[string]session // by access key
}

type session struct{ token, arn string }

func (s *STS) role() string { return "arn:aws:iam::" + account + ":role/shop" }

// startSTS serves until the test ends. The role is given only to tokens of this subject.
func startSTS(t *testing.T, n *Node, subject string) *STS {
	t.Helper()
	s := &STS{node: n, subject: subject, sessions: map[string]session{
		// What the metadata service gives away is the node's role.
		testnode.AccessKeyID: {
			testnode.SessionToken, "arn:aws:sts::" + account + ":assumed-role/" + testnode.Role + "/i-1"},
	}}
	certificate, err := s.certificate("sts." + region + ".amazonaws.com")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := n.listenOutside(outsideIP + ":443")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() {
		ended <- server.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{certificate}}))
	}()
	t.Cleanup(func() {
		_ = server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serving STS: %v", err)
		}
	})
	return s
}

// listenOutside listens in the namespace that stands for the world outside the node.
func (n *Node) listenOutside(address string) (net.Listener, error) {
	return listenIn(n.path("/run/netns/outside"), address)
}

// listenIn listens in a network namespace, given by its file.
func listenIn(namespace, address string) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	done := make(chan result, 1)
	go func() {
		// Never unlocked: the thread that was in another namespace ends with this goroutine.
		runtime.LockOSThread()
		ns, err := os.Open(namespace)
		if err != nil {
			done <- result{nil, fmt.Errorf("opening a network namespace: %w", err)}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- result{nil, fmt.Errorf("entering a network namespace: %w", err)}
			return
		}
		listener, err := net.Listen("tcp", address)
		done <- result{listener, err}
	}()
	r := <-done
	return r.listener, r.err
}

// certificate makes the server's, and the authority that clients are to trust.
func (s *STS) certificate(name string) (tls.Certificate, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a key: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a key: %w", err)
	}
	begin, end := time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "e2e-sts-ca"}, NotBefore: begin,
		NotAfter: end, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: begin,
		NotAfter: end, DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate: %w", err)
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("making a certificate: %w", err)
	}
	s.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	return tls.Certificate{Certificate: [][]byte{leafDER}, PrivateKey: key}, nil
}

// ServeHTTP answers the two actions that the tests use, in STS's query protocol.
func (s *STS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch action := r.PostFormValue("Action"); action {
	case "AssumeRoleWithWebIdentity":
		s.assumeRole(w, r)
	case "GetCallerIdentity":
		s.callerIdentity(w, r)
	default:
		refuse(w, http.StatusBadRequest, "InvalidAction", "no action "+action)
	}
}

func (s *STS) assumeRole(w http.ResponseWriter, r *http.Request) {
	if err := s.check(r.PostFormValue("WebIdentityToken")); err != nil {
		refuse(w, http.StatusBadRequest, "InvalidIdentityToken", err.Error())
		return
	}
	if role := r.PostFormValue("RoleArn"); role != s.role() {
		refuse(w, http.StatusForbidden, "AccessDenied", "no right to assume "+role)
		return
	}
	random := make([]byte, 15)
	_, _ = rand.Read(random)
	id := base64.RawURLEncoding.EncodeToString(random)
	key := "ASIA" + id
	given := session{"token-" + id, "arn:aws:sts::" + account + ":assumed-role/shop/" + r.PostFormValue("RoleSessionName")}
	s.mu.Lock()
	s.sessions[key] = given
	s.mu.Unlock()
	answer(w, "AssumeRoleWithWebIdentity", fmt.Sprintf(`<Credentials><AccessKeyId>%s</AccessKeyId>
<SecretAccessKey>secret-%s</SecretAccessKey><SessionToken>%s</SessionToken><Expiration>%s</Expiration></Credentials>
<AssumedRoleUser><Arn>%s</Arn><AssumedRoleId>AROA:shop</AssumedRoleId></AssumedRoleUser>`,
		key, id, given.token, time.Now().Add(time.Hour).UTC().Format(time.RFC3339), given.arn))
}

// check verifies the token as AWS does, without asking the cluster about it: signed by one of the cluster's published keys,
// by the cluster as issuer, for AWS as audience, for the service account that the role trusts, and not expired.
func (s *STS) check(token string) error {
	keys, err := s.node.signingKeys()
	if err != nil {
		return err
	}
	_, err = jwt.Parse(token, func(t *jwt.Token) (any, error) {
		if key, ok := keys[fmt.Sprint(t.Header["kid"])]; ok {
			return key, nil
		}
		return nil, fmt.Errorf("the cluster has no key %v", t.Header["kid"])
	}, jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer("https://kubernetes.default.svc"),
		jwt.WithAudience("sts.amazonaws.com"), jwt.WithSubject(s.subject), jwt.WithExpirationRequired())
	return err
}

// signingKeys returns the keys that the API server publishes for service-account tokens.
func (n *Node) signingKeys() (map[string]*rsa.PublicKey, error) {
	text, err := n.Try("kubectl", "get", "--raw", "/openid/v1/jwks")
	if err != nil {
		return nil, fmt.Errorf("getting the cluster's keys: %w", err)
	}
	var set struct {
		Keys []struct{ Kid, Kty, N, E string }
	}
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return nil, fmt.Errorf("reading the cluster's keys: %w", err)
	}
	keys := map[string]*rsa.PublicKey{}
	for _, k := range set.Keys {
		modulus, err := base64.RawURLEncoding.DecodeString(k.N)
		if err != nil {
			return nil, fmt.Errorf("reading the cluster's key %s: %w", k.Kid, err)
		}
		exponent, err := base64.RawURLEncoding.DecodeString(k.E)
		if err != nil {
			return nil, fmt.Errorf("reading the cluster's key %s: %w", k.Kid, err)
		}
		keys[k.Kid] = &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(new(big.Int).SetBytes(exponent).Int64())}
	}
	return keys, nil
}

var accessKey = regexp.MustCompile(`Credential=([^/]+)/`)

func (s *STS) callerIdentity(w http.ResponseWriter, r *http.Request) {
	m := accessKey.FindStringSubmatch(r.Header.Get("Authorization"))
	if m == nil {
		refuse(w, http.StatusForbidden, "MissingAuthenticationToken", "the request is not signed")
		return
	}
	s.mu.Lock()
	holder, ok := s.sessions[m[1]]
	s.mu.Unlock()
	if !ok || r.Header.Get("X-Amz-Security-Token") != holder.token {
		refuse(w, http.StatusForbidden, "InvalidClientTokenId", "nobody holds "+m[1])
		return
	}
	answer(w, "GetCallerIdentity", "<Arn>"+holder.arn+"</Arn><UserId>AROA:x</UserId><Account>"+account+"</Account>")
}

func answer(w http.ResponseWriter, action, result string) {
	w.Header().Set("Content-Type", "text/xml")
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><%[1]sResult>%[2]s</%[1]sResult>
<ResponseMetadata><RequestId>e2e</RequestId></ResponseMetadata></%[1]sResponse>`, action, result)
}

func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, `<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
<Code>%s</Code><Message>%s</Message></Error><RequestId>e2e</RequestId></ErrorResponse>`, code, html.EscapeString(message))
}

//go:build linux

// The stand-in for the instance metadata service.

package testnode

import (
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// What the stand-in hands out. The keys are the examples from AWS's own documentation.
const (
	Role            = "eks-node-role"
	AccessKeyID     = "ASIAIOSFODNN7EXAMPLE"
	SecretAccessKey = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	SessionToken    = "IQoJb3JpZ2luX2VjEXAMPLETOKEN"
	IMDSToken       = "AQAEAExampleTokenOfTheStandIn=="
)

const (
	ttlHeader = "X-aws-ec2-metadata-token-ttl-seconds"
	// tokenHeader is in net/http's spelling.
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	maxTTL      = 21600
)

// imdsDocuments are also served with a trailing slash.
var imdsDocuments = map[string]string{
	"/latest/meta-data/instance-id":                 "i-1234567890abcdef0",
	"/latest/meta-data/placement/availability-zone": "us-east-1a",
	"/latest/meta-data/placement/region":            "us-east-1",
	"/latest/user-data":                             "#!/bin/bash\n/etc/eks/bootstrap.sh example\n",

	"/latest/dynamic/instance-identity/document": `{
  "accountId" : "111122223333",
  "availabilityZone" : "us-east-1a",
  "instanceId" : "i-1234567890abcdef0",
  "region" : "us-east-1"
}`,

	"/latest/meta-data/iam/security-credentials": Role,
	"/latest/meta-data/iam/security-credentials/" + Role: `{
  "Code" : "Success",
  "LastUpdated" : "` + fromNow(0) + `",
  "Type" : "AWS-HMAC",
  "AccessKeyId" : "` + AccessKeyID + `",
  "SecretAccessKey" : "` + SecretAccessKey + `",
  "Token" : "` + SessionToken + `",
  "Expiration" : "` + fromNow(6*time.Hour) + `"
}`,
}

// fromNow formats a time as AWS does. Clients don't use expired credentials.
func fromNow(d time.Duration) string { return time.Now().Add(d).UTC().Format(time.RFC3339) }

// IMDS is the stand-in for the endpoint. It answers IMDSv1 and IMDSv2 requests in both families with a fixed role and
// credentials, and counts the requests that reach it.
type IMDS struct {
	server   *server
	requests atomic.Int64
}

func serveIMDS(ns *Namespace) (*IMDS, error) {
	m := &IMDS{}
	var err error
	if m.server, err = serve(ns, m, IMDSv4, IMDSv6); err != nil {
		return nil, err
	}
	return m, nil
}

// Requests returns how many requests have reached the endpoint so far, token requests included.
func (m *IMDS) Requests() int64 { return m.requests.Load() }

// Stop frees the endpoint's addresses for another server. The node stays as it is.
func (m *IMDS) Stop() {
	m.server.close()
}

// ServeHTTP implements http.Handler.
func (m *IMDS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	m.requests.Add(1)
	if r.URL.Path == "/latest/api/token" {
		serveToken(w, r)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	if token, given := r.Header[tokenHeader]; given && token[0] != IMDSToken {
		http.Error(w, "unauthorized", http.StatusUnauthorized)
		return
	}
	document, ok := imdsDocuments[strings.TrimSuffix(r.URL.Path, "/")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = io.WriteString(w, document)
}

func serveToken(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	if err != nil || ttl < 1 || ttl > maxTTL {
		http.Error(w, "bad request", http.StatusBadRequest)
		return
	}
	w.Header().Set(ttlHeader, strconv.Itoa(ttl))
	_, _ = io.WriteString(w, IMDSToken)
}

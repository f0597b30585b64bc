// Package request reads, from the beginning of an HTTP request to IMDS, what kind of thing is asked for and by which software.
//
// The beginning is up to the client, and it may hold a token or worse. Nothing of it gets into the result but the name of
// the software, in a few harmless characters: the rest is chosen from constants.
package request

import (
	"net/url"
	"path"
	"strings"
	"unsafe"
)

// The versions of IMDS that a request can be written for.
const (
	V1      = "IMDSv1"
	V2      = "IMDSv2"
	Unknown = "unknown" // the headers go on after what was seen of them, and the token may be there
)

// The kinds of document.
const (
	Token       = "token"
	Credentials = "credentials"
	Placement   = "region and placement"
	Identity    = "identity document"
	Network     = "network"
	UserData    = "user data"
	Other       = "other"
)

// Documents are all kinds of document.
var Documents = []string{Token, Credentials, Placement, Identity, Network, UserData, Other}

// Request is what was asked.
type Request struct {
	Version  string // V1, V2 or Unknown
	Document string // one of Documents
	Agent    string // first product of the User-Agent, such as Boto3/1.26.0; empty if there is none
}

const (
	tokenHeader = "X-aws-ec2-metadata-token"
	agentHeader = "User-Agent"
	maxAgent    = 64
)

// Parse reads the beginning of a request, which may end anywhere behind the request line. It returns false if this is not
// HTTP/1, or not yet a whole request line. More bytes of the same request can replace Unknown and fill in an empty Agent;
// they change nothing else.
func Parse(beginning []byte) (Request, bool) {
	// No copy of it, which may hold a token, is to be left in memory; nothing of it is in what is returned but clones.
	line, rest, whole := cutLine(unsafe.String(unsafe.SliceData(beginning), len(beginning)))
	method, target, ok := requestLine(line)
	if !whole || !ok {
		return Request{}, false
	}
	r := Request{Version: Unknown, Document: document(method, target)}
	if r.Document == Token {
		r.Version = V2
	}
	for agentSeen := false; whole; {
		line, rest, whole = cutLine(rest)
		if whole && line == "" {
			if r.Version == Unknown {
				r.Version = V1
			}
			break // what follows is the body
		}
		// A folded line (RFC 9112, section 5.2) starts with a blank, so its name is none of these.
		name, value, ok := strings.Cut(line, ":")
		switch {
		case !ok:
		case isHeader(name, tokenHeader):
			r.Version = V2
		case isHeader(name, agentHeader) && !agentSeen:
			r.Agent, agentSeen = product(value, whole), true
		}
	}
	return r, true
}

// cutLine cuts text behind its first line, which ends with LF or CRLF, and is whole if it does. A CR alone ends nothing, so
// that no part of a header's value passes for a header.
func cutLine(text string) (line, rest string, whole bool) {
	line, rest, whole = strings.Cut(text, "\n")
	if whole {
		line = strings.TrimSuffix(line, "\r")
	}
	return line, rest, whole
}

// requestLine splits a line as RFC 9112, section 3 has it: one space between the words, none in them.
func requestLine(line string) (method, target string, ok bool) {
	method, rest, _ := strings.Cut(line, " ")
	target, version, _ := strings.Cut(rest, " ")
	switch method {
	case "GET", "PUT", "HEAD", "POST", "OPTIONS", "DELETE":
	default:
		return "", "", false
	}
	minor, ok := strings.CutPrefix(version, "HTTP/1.")
	return method, target, ok && target != "" && len(minor) == 1 && '0' <= minor[0] && minor[0] <= '9'
}

// isHeader compares ASCII only: EqualFold knows other letters for k and s, but these are longer.
func isHeader(name, header string) bool {
	return len(name) == len(header) && strings.EqualFold(name, header)
}

// kinds are the kinds of document by the path below the version. The source is the table "Instance metadata categories" in
// the AWS EC2 user guide; what is not here is Other.
var kinds = []struct{ below, document string }{
	{"meta-data/iam/security-credentials", Credentials},
	{"meta-data/identity-credentials/ec2/security-credentials", Credentials},
	{"meta-data/placement", Placement},
	{"dynamic/instance-identity", Identity},
	{"user-data", UserData},
	{"meta-data/network", Network},
	{"meta-data/mac", Network},
	{"meta-data/local-ipv4", Network},
	{"meta-data/public-ipv4", Network},
	{"meta-data/ipv6", Network},
	{"meta-data/hostname", Network},
	{"meta-data/local-hostname", Network},
	{"meta-data/public-hostname", Network},
	{"meta-data/security-groups", Network}, // the same as network/interfaces/macs/mac/security-groups
}

// document tells a request's kind. Any first element of the path passes for a version: there are many, and only what would
// be asked for counts here, not what IMDS would answer.
func document(method, target string) string {
	target, _, _ = strings.Cut(target, "?")
	const scheme = "http://"
	if len(target) > len(scheme) && strings.EqualFold(target[:len(scheme)], scheme) {
		_, target, _ = strings.Cut(target[len(scheme):], "/") // the absolute form, as to a proxy
		target = "/" + target
	}
	decoded, err := url.PathUnescape(target)
	if err != nil || !strings.HasPrefix(target, "/") {
		return Other
	}
	_, below, _ := strings.Cut(path.Clean(decoded)[1:], "/")
	if below == "api/token" && method == "PUT" {
		return Token
	}
	for _, k := range kinds {
		if after, ok := strings.CutPrefix(below, k.below); ok && (after == "" || after[0] == '/') {
			return k.document
		}
	}
	return Other
}

// product is the first product of a User-Agent: a token, or a token, a slash and a version (RFC 9110, section 10.1.5), as
// far as its characters are expected ones. Of a line that is not whole it is empty, unless a space or CR shows where it ends.
func product(value string, whole bool) string {
	value = strings.TrimLeft(value, " \t")
	end, slash := 0, false
	for ; end < len(value) && end < maxAgent; end++ {
		if c := value[end]; c == '/' && end > 0 && !slash {
			slash = true
		} else if !agentByte(c) {
			break
		}
	}
	if !whole && (end == len(value) || value[end] != ' ' && value[end] != '\r') {
		return ""
	}
	return strings.Clone(strings.TrimSuffix(value[:end], "/")) // a clone, as it would keep the whole request in memory
}

func agentByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._+-", c) >= 0
}

// Package request finds out, from the beginning of an HTTP request to IMDS, what kind of thing is asked for and by which
// software.
//
// The client controls the request, which may contain a token or worse. Only the name of the software, limited to harmless
// characters, gets into the result; everything else is chosen from constants.
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
	Unknown = "unknown" // the headers were cut off, and the rest may contain the token
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

// Documents lists all kinds of document.
var Documents = []string{Token, Credentials, Placement, Identity, Network, UserData, Other}

// Request is what was asked for.
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

// Parse reads the beginning of a request, which may end anywhere after the request line. It returns false if this is not
// HTTP/1, or the request line is incomplete. With more bytes of the same request, Unknown may become known and an empty Agent
// be filled in; nothing else changes.
func Parse(beginning []byte) (Request, bool) {
	// No copy of the request may be left in memory, since it may contain a token; the result contains only clones.
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
		// A folded line (RFC 9112, section 5.2) starts with a blank, so its name matches none of these.
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

// cutLine cuts text after its first line. A line ends with LF or CRLF, and is whole if it does. A CR alone ends nothing, so
// that no part of a header's value can pass for a header.
func cutLine(text string) (line, rest string, whole bool) {
	line, rest, whole = strings.Cut(text, "\n")
	if whole {
		line = strings.TrimSuffix(line, "\r")
	}
	return line, rest, whole
}

// requestLine splits a line as in RFC 9112, section 3: one space between the words, none inside them.
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

// isHeader compares ASCII only: EqualFold also folds non-ASCII letters to k and s, but those are longer, so comparing the
// lengths excludes them.
func isHeader(name, header string) bool {
	return len(name) == len(header) && strings.EqualFold(name, header)
}

// kinds maps paths below the version to kinds of document. The source is the table "Instance metadata categories" in the AWS
// EC2 user guide; anything else is Other.
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

// document returns the kind of document that a request asks for. Any first path element is accepted as a version: there are
// many, and what counts here is what is asked for, not what IMDS would answer.
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

// product returns the first product of a User-Agent: a token, or a token, a slash and a version (RFC 9110, section 10.1.5), up
// to the first unexpected character. If the line is not whole, it is empty unless a space or CR shows where the product ends.
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
	return strings.Clone(strings.TrimSuffix(value[:end], "/")) // a clone: a substring would keep the whole request in memory
}

func agentByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("._+-", c) >= 0
}

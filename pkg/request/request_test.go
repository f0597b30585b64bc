package request

import (
	"net/url"
	"slices"
	"strings"
	"testing"
)

// Requests as the clients sent them to a server that posed as IMDS (curl 7.88.1, boto3 with botocore 1.43.11, and
// aws-sdk-go-v2 1.48.0), but for the host and the token. aws-cli 2 has botocore inside and goes by its source.
const (
	curlToken = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\n" +
		"X-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n"
	curlV1 = "GET /latest/meta-data/iam/security-credentials/ HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: curl/7.88.1\r\n" +
		"Accept: */*\r\n\r\n"
	curlV2 = "GET /latest/dynamic/instance-identity/document HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: curl/7.88.1\r\n" +
		"Accept: */*\r\nX-aws-ec2-metadata-token: AQAEAH-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNQ==\r\n\r\n"
	curlProxy = "GET http://169.254.169.254/latest/user-data HTTP/1.1\r\nHost: 169.254.169.254\r\nUser-Agent: curl/7.88.1\r\n" +
		"Accept: */*\r\nProxy-Connection: Keep-Alive\r\n\r\n"
	botocoreToken = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nAccept-Encoding: identity\r\n" +
		"x-aws-ec2-metadata-token-ttl-seconds: 21600\r\n" +
		"User-Agent: Boto3/1.43.11 Python/3.11.7 Linux/6.18.44-fc-v782 Botocore/1.43.11\r\nContent-Length: 0\r\n\r\n"
	botocoreV2 = "GET /latest/meta-data/iam/security-credentials/role HTTP/1.1\r\nHost: 169.254.169.254\r\n" +
		"Accept-Encoding: identity\r\n" +
		"x-aws-ec2-metadata-token: AQAEAH-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNQ==\r\n" +
		"User-Agent: Boto3/1.43.11 Python/3.11.7 Linux/6.18.44-fc-v782 Botocore/1.43.11\r\n\r\n"
	cliV2 = "GET /latest/meta-data/placement/availability-zone/ HTTP/1.1\r\nHost: 169.254.169.254\r\n" +
		"Accept-Encoding: identity\r\n" +
		"x-aws-ec2-metadata-token: AQAEAH-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNQ==\r\n" +
		"User-Agent: aws-cli/2.15.0 Python/3.11.6 Linux/6.1.61-85.141.amzn2023.x86_64 exe/x86_64.amzn.2023\r\n\r\n"
	goToken = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\n" +
		"User-Agent: aws-sdk-go-v2/1.48.0 ua/2.1 os/linux lang/go#1.26.8 md/GOOS#linux md/GOARCH#amd64 ft/ec2-imds\r\n" +
		"Content-Length: 0\r\nAmz-Sdk-Request: attempt=1; max=3\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 300\r\n" +
		"Accept-Encoding: gzip\r\n\r\n"
	goV2 = "GET /latest/meta-data/iam/security-credentials/role HTTP/1.1\r\nHost: 169.254.169.254\r\n" +
		"User-Agent: aws-sdk-go-v2/1.48.0 ua/2.1 os/linux lang/go#1.26.8 md/GOOS#linux md/GOARCH#amd64 ft/ec2-imds\r\n" +
		"Amz-Sdk-Request: attempt=1; max=3\r\n" +
		"X-Aws-Ec2-Metadata-Token: AQAEAH-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNQ==\r\nAccept-Encoding: gzip\r\n\r\n"
)

var clients = map[string]Request{
	curlToken:     {V2, Token, "curl/7.88.1"},
	curlV1:        {V1, Credentials, "curl/7.88.1"},
	curlV2:        {V2, Identity, "curl/7.88.1"},
	curlProxy:     {V1, UserData, "curl/7.88.1"},
	botocoreToken: {V2, Token, "Boto3/1.43.11"},
	botocoreV2:    {V2, Credentials, "Boto3/1.43.11"},
	cliV2:         {V2, Placement, "aws-cli/2.15.0"},
	goToken:       {V2, Token, "aws-sdk-go-v2/1.48.0"},
	goV2:          {V2, Credentials, "aws-sdk-go-v2/1.48.0"},
}

// Each client's request, whole, with bare LFs, with a body, and cut off anywhere.
func TestClients(t *testing.T) {
	for text, want := range clients {
		for _, variant := range []string{
			text, strings.ReplaceAll(text, "\r\n", "\n"), text + "{\"täxt\": 1}\nX-aws-ec2-metadata-token: x\nUser-Agent: body/1\n",
		} {
			if r, ok := Parse([]byte(variant)); !ok || r != want {
				t.Errorf("Parse(%q) = %+v, %t, want %+v", variant, r, ok, want)
			}
			for end := range variant {
				r, ok := Parse([]byte(variant[:end]))
				if requestLineSeen := strings.Contains(variant[:end], "\n"); ok != requestLineSeen {
					t.Errorf("Parse(%q) = %+v, %t", variant[:end], r, ok)
				}
				if ok && !extends(r, want) {
					t.Errorf("Parse(%q) = %+v, but %+v of all", variant[:end], r, want)
				}
			}
		}
	}
}

// extends reports whether the result r may become more when more bytes of the same request are seen.
func extends(r, more Request) bool {
	return r.Document == more.Document && (r.Version == more.Version || r.Version == Unknown) &&
		(r.Agent == more.Agent || r.Agent == "")
}

func TestDocument(t *testing.T) {
	for target, want := range map[string]string{
		"/latest/meta-data/iam/security-credentials":                                Credentials,
		"/latest/meta-data/iam/security-credentials/role":                           Credentials,
		"/latest/meta-data/identity-credentials/ec2/security-credentials/":          Credentials,
		"/latest/meta-data/iam/security-credentials-of-old":                         Other,
		"/latest/meta-data/iam/info":                                                Other,
		"/latest/meta-data/iam":                                                     Other,
		"/latest/meta-data/identity-credentials/ec2/info":                           Other,
		"/latest/meta-data/placement":                                               Placement,
		"/2021-07-15/meta-data/placement/region":                                    Placement,
		"/latest/dynamic/instance-identity/pkcs7":                                   Identity,
		"/latest/dynamic/fws/instance-monitoring":                                   Other,
		"/latest/meta-data/network/interfaces/macs/0e:49:61:0f:c3:11/subnet-id":     Network,
		"/latest/meta-data/mac":                                                     Network,
		"/latest/meta-data/local-hostname":                                          Network,
		"/latest/meta-data/ipv6":                                                    Network,
		"/latest/meta-data/security-groups":                                         Network,
		"/latest/meta-data/public-keys/0/openssh-key":                               Other,
		"/latest/meta-data/instance-id":                                             Other,
		"/latest/meta-data/":                                                        Other,
		"/1.0/user-data":                                                            UserData,
		"/latest/user-data?x=/latest/meta-data/mac":                                 UserData,
		"/latest?/latest/user-data":                                                 Other,
		"//latest///meta-data//mac//":                                               Network,
		"/latest/./dynamic/../meta-data/mac":                                        Network,
		"/../..":                                                                    Other,
		"/latest/meta%2Ddata%2fiam/security%2Dcredentials":                          Credentials,
		"/latest/user-data%3Fx":                                                     Other,
		"/latest/user-data/%":                                                       Other,
		"/latest/user-data/%zz":                                                     Other,
		"/latest/api/token":                                                         Other, // of a GET
		"http://169.254.169.254/latest/user-data":                                   UserData,
		"HTTP://user:password@[fd00:ec2::254]:80//latest/meta-data/placement/?a=/b": Placement,
		"http://169.254.169.254":                                                    Other,
		"http://":                                                                   Other,
		"http://?":                                                                  Other,
		"latest/user-data":                                                          Other,
		"%2Flatest/user-data":                                                       Other,
		"*":                                                                         Other,
		"?":                                                                         Other,
		"/":                                                                         Other,
		"/user-data":                                                                Other,
	} {
		for _, method := range []string{"GET", "HEAD", "POST", "OPTIONS", "DELETE"} {
			r, ok := Parse([]byte(method + " " + target + " HTTP/1.0\n"))
			if want := (Request{Unknown, want, ""}); !ok || r != want {
				t.Errorf("%s %s: %+v, %t, want %+v", method, target, r, ok, want)
			}
		}
	}
	for _, target := range []string{"/latest/api/token", "/2021-01-03//api/token/", "http://169.254.169.254/latest/api/token?x"} {
		r, ok := Parse([]byte("PUT " + target + " HTTP/1.1\r\n"))
		if want := (Request{V2, Token, ""}); !ok || r != want {
			t.Errorf("PUT %s: %+v, %t, want %+v", target, r, ok, want)
		}
	}
}

// What follows the request line of a GET for other things.
func TestHeaders(t *testing.T) {
	for headers, want := range map[string]Request{
		"":                                        {Unknown, Other, ""},
		"\r":                                      {Unknown, Other, ""},
		"\r\n":                                    {V1, Other, ""},
		"\n":                                      {V1, Other, ""},
		"X-aws-ec2-metadata-token":                {Unknown, Other, ""}, // may be the -ttl-seconds
		"X-aws-ec2-metadata-token:":               {V2, Other, ""},
		"x-AWS-ec2-Metadata-TOKEN: a\n":           {V2, Other, ""},
		"X-aws-ec2-metadata-token : a\n\n":        {V1, Other, ""},
		" X-aws-ec2-metadata-token: a\n\n":        {V1, Other, ""},
		"A: b\rX-aws-ec2-metadata-token: a":       {Unknown, Other, ""},
		"X-aws-ec2-metadata-to\u212aen:a\n":       {Unknown, Other, ""}, // the Kelvin sign
		"no header at all\nX:\n\n":                {V1, Other, ""},
		"User-Agent: a/1\nUser-Agent: b/2\n":      {Unknown, Other, "a/1"},
		"User-Agent:\nUser-Agent: b/2\n":          {Unknown, Other, ""},
		"\nUser-Agent: b/2\n":                     {V1, Other, ""},
		"user-agent:\t a/1 \r\n":                  {Unknown, Other, "a/1"},
		"User-Agent: a/1":                         {Unknown, Other, ""},
		"User-Agent: a/1.":                        {Unknown, Other, ""},
		"User-Agent: a/1.2 ":                      {Unknown, Other, "a/1.2"},
		"User-Agent: a/1.2\r":                     {Unknown, Other, "a/1.2"},
		"User-Agent: ":                            {Unknown, Other, ""},
		"User-Agent: \r\n b/2\r\n":                {Unknown, Other, ""},
		"User-Agent: a\n":                         {Unknown, Other, "a"},
		"User-Agent: a/\n":                        {Unknown, Other, "a"},
		"User-Agent: /a\n":                        {Unknown, Other, ""},
		"User-Agent: a/1/2\n":                     {Unknown, Other, "a/1"},
		"User-Agent: a_b.c+d-e/1;rm\n":            {Unknown, Other, "a_b.c+d-e/1"},
		"User-Agent: a\x00b\n":                    {Unknown, Other, "a"},
		"User-Agent: \u00e4/1\n":                  {Unknown, Other, ""},
		"User-Agent: <script>\n":                  {Unknown, Other, ""},
		"User-Agent: Authorization: Bearer\n\r\n": {V1, Other, "Authorization"},
		"User-Agent: " + strings.Repeat("a", 999) + "/1\n":    {Unknown, Other, strings.Repeat("a", 64)},
		"User-Agent: " + strings.Repeat("a", 63) + "/1 b\n":   {Unknown, Other, strings.Repeat("a", 63)},
		"User-Agent: " + strings.Repeat("a", 62) + "/1 b\n\n": {V1, Other, strings.Repeat("a", 62) + "/1"},
	} {
		r, ok := Parse([]byte("GET / HTTP/1.1\r\n" + headers))
		if !ok || r != want {
			t.Errorf("%q: %+v, %t, want %+v", headers, r, ok, want)
		}
	}
}

func TestNoRequest(t *testing.T) {
	for _, text := range []string{
		"", "\n", "\r\n", "GET", "GET\n", "GET /\r\n", "GET / HTTP/1.1", "GET / HTTP/1.1\r", "GET / HTTP/1.1\rX: y\n",
		"GET  / HTTP/1.1\n", "GET / x HTTP/1.1\n", "GET  HTTP/1.1\n", " GET / HTTP/1.1\n", "GET / HTTP/1.1 \n", "get / HTTP/1.1\n",
		"GET / HTTP/2.0\n", "GET / HTTP/1.\n", "GET / HTTP/1.10\n", "GET / HTTP/1.x\n", "GET / http/1.1\n",
		"TRACE / HTTP/1.1\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "SSH-2.0-OpenSSH_9.6\r\n", "EHLO x\r\n", "\x00\xff\xfe\n\n",
		strings.Repeat("\xff", 512), strings.Repeat("\n", 512), "GET /\x00 HTTP/1.1",
		"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03\r\n\r\nGET / HTTP/1.1\r\n", // a TLS ClientHello
	} {
		if r, ok := Parse([]byte(text)); ok || r != (Request{}) {
			t.Errorf("Parse(%q) = %+v, %t", text, r, ok)
		}
	}
}

// FuzzParse looks for what a client could make the report say. A secret is planted wherever requests have one; that it
// makes no difference whether it is this one or another proves more than that it is not found in the result.
func FuzzParse(f *testing.F) {
	for text := range clients {
		f.Add([]byte(text), "/latest/user-data", "User-Agent: a/1 b", "Accept: */*", uint16(len(text)))
	}
	f.Add([]byte("\x16\x03\x01"), "/ HTTP/1.1\nUser-Agent: ", "User-Agent:", "User-Agent: \r", uint16(300))
	f.Add([]byte("GET / HTTP/1.1\n\n"), "http://a%2/", "\r\nCookie", " User-Agent:\n", uint16(99))
	f.Add([]byte("GET / HTTP/1.1\n"), "/", "Accept: */*", "Referer: x", uint16(512)) // the secrets are alone
	f.Fuzz(func(t *testing.T, raw []byte, target, before, after string, end uint16) {
		request := func(secret string) []byte {
			return []byte("GET " + target + "?" + secret + "&a=" + secret + " HTTP/1.1\r\n" +
				before + "\r\nX-aws-ec2-metadata-token: " + secret + "\r\n" +
				after + "\r\nAuthorization: " + secret + "\r\nCookie: " + secret + "; a=" + secret + "\r\n" +
				before + "\r\n\r\n")
		}
		const secret, another = "AQAEAHplanted-secret1", "c7.Z_u+XsomethingElse"
		planted := request(secret)
		for _, text := range [][]byte{raw, planted} {
			all, allOK := check(t, text)
			cut := text[:min(int(end), len(text))]
			r, ok := check(t, cut)
			if ok && (!allOK || !extends(r, all)) {
				t.Errorf("Parse(%q) = %+v, but %+v, %t of %q", cut, r, all, allOK, text)
			}
		}
		cut := min(int(end), len(planted))
		for _, n := range []int{cut, len(planted)} {
			r, ok := Parse(planted[:n])
			if r2, ok2 := Parse(request(another)[:n]); r != r2 || ok != ok2 {
				t.Errorf("the secret makes a difference in %q: %+v, %t and %+v, %t", planted[:n], r, ok, r2, ok2)
			}
			if strings.Contains(r.Agent, secret) && !strings.Contains(before+after+target, secret) {
				t.Errorf("Parse(%q) = %+v", planted[:n], r)
			}
		}
	})
}

// check is Parse, and fails on results that must never occur.
func check(t *testing.T, text []byte) (Request, bool) {
	r, ok := Parse(text)
	const agent = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-/"
	switch {
	case !ok && r != Request{}:
		t.Errorf("Parse(%q) = %+v, false", text, r)
	case ok && (!slices.Contains([]string{V1, V2, Unknown}, r.Version) || !slices.Contains(Documents, r.Document)):
		t.Errorf("Parse(%q) = %+v", text, r)
	case len(r.Agent) > 64 || strings.Trim(r.Agent, agent) != "" || strings.Count(r.Agent, "/") > 1:
		t.Errorf("Parse(%q) = %+v", text, r)
	}
	return r, ok
}

// The longest that is looked at: a client with much to say of itself, and a path to be decoded.
func BenchmarkParse(b *testing.B) {
	text := strings.Replace(goV2, "/role", "/"+url.PathEscape("röle"), 1)
	text = strings.Replace(text, "Accept-Encoding", "X-Padding: "+strings.Repeat("a", 512)+"\r\nAccept-Encoding", 1)[:512]
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := Parse([]byte(text)); !ok {
			b.Fatal("no request")
		}
	}
}

//go:build linux

// What a thief does, and what it feels when it is blocked.

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

const (
	// patience is for what must happen, bounded only so that the demo ends.
	patience = 15 * time.Second
	// blockedAfter is when a connection attempt counts as blocked. A DROP is felt as no answer at all.
	blockedAfter = time.Second
)

// credentials is AWS's document, as far as it is shown.
type credentials struct {
	Role            string `json:"-"`
	AccessKeyID     string `json:"AccessKeyId"`
	SecretAccessKey string
}

// steal gets the node's credentials as any AWS SDK does: a token, the name of the role, the role's credentials.
func steal(ctx context.Context, from *testnode.Namespace, ip string) (c credentials, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	token, err := imdsRequest(ctx, from, http.MethodPut, ip, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
	if err != nil {
		return c, err
	}
	const path = "/latest/meta-data/iam/security-credentials/"
	role, err := imdsRequest(ctx, from, http.MethodGet, ip, path, "X-aws-ec2-metadata-token", token)
	if err != nil {
		return c, err
	}
	document, err := imdsRequest(ctx, from, http.MethodGet, ip, path+role, "X-aws-ec2-metadata-token", token)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal([]byte(document), &c); err != nil {
		return c, fmt.Errorf("reading the credentials: %w", err)
	}
	if c.AccessKeyID == "" || c.SecretAccessKey == "" {
		return c, fmt.Errorf("reading the credentials: no keys in %q", document)
	}
	c.Role = role
	return c, nil
}

func imdsRequest(ctx context.Context, from *testnode.Namespace, method, ip, path, header, value string) (string, error) {
	url := "http://" + net.JoinHostPort(ip, "80") + path
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return "", fmt.Errorf("making a request for %s: %w", url, err)
	}
	req.Header.Set(header, value)
	resp, err := from.Client().Do(req)
	if err != nil {
		return "", fmt.Errorf("asking the IMDS: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", fmt.Errorf("reading the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("asking %s: status %s", url, resp.Status)
	}
	return strings.TrimSpace(string(body)), nil
}

// expectBlocked fails unless a connection attempt to port 80 gets no answer.
func expectBlocked(ctx context.Context, from *testnode.Namespace, ip string) error {
	attempt, cancel := context.WithTimeout(ctx, blockedAfter)
	defer cancel()
	conn, err := from.Dial(attempt, "tcp", net.JoinHostPort(ip, "80"))
	if err == nil {
		conn.Close()
		return fmt.Errorf("connecting to %s worked, and should have been blocked", ip)
	}
	var netErr net.Error
	if ctx.Err() != nil || !errors.As(err, &netErr) || !netErr.Timeout() {
		return fmt.Errorf("connecting to %s: want no answer, got: %w", ip, err)
	}
	return nil
}

//go:build e2e

// Scenario 2: a pod with a role of its own keeps it while the metadata service is blocked.

package e2e

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

const (
	awsImage = "e2e.local/awscli:1" // Debian's aws command; sleeps
	region   = "eu-central-1"
)

// awsPod is a pod with the environment that EKS gives it, but for the role, which the tests give to single commands. The
// token is projected for the audience that AWS wants, and once more for another one.
const awsPod = `
apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  serviceAccountName: shop
  automountServiceAccountToken: false
  enableServiceLinks: false
  dnsPolicy: Default
  terminationGracePeriodSeconds: 0
  hostAliases: [{ip: %s, hostnames: [sts.` + region + `.amazonaws.com]}]
  containers:
  - name: main
    image: ` + awsImage + `
    imagePullPolicy: Never
    env:
    - {name: AWS_REGION, value: ` + region + `}
    - {name: AWS_STS_REGIONAL_ENDPOINTS, value: regional}
    - {name: AWS_CA_BUNDLE, value: /sts/ca.crt}
    volumeMounts:
    - {name: sts, mountPath: /sts}
    - {name: tokens, mountPath: /tokens}
  volumes:
  - name: sts
    configMap: {name: sts-ca}
  - name: tokens
    projected:
      sources:
      - serviceAccountToken: {audience: sts.amazonaws.com, path: aws, expirationSeconds: 3600}
      - serviceAccountToken: {audience: somebody.else, path: other, expirationSeconds: 3600}
`

// The real `aws` asks who it is. Before imds-guard it is the node, if it has no role of its own. Afterwards it is nobody
// without a role, and with one it is that role, all the same.
func TestIRSA(t *testing.T) {
	begin(t)
	sts := startSTS(t, node, "system:serviceaccount:default:shop")
	node.Apply(t, `{apiVersion: v1, kind: ServiceAccount, metadata: {name: shop}}`)
	node.Apply(t, `{apiVersion: v1, kind: ConfigMap, metadata: {name: sts-ca}, binaryData: {ca.crt: `+
		base64.StdEncoding.EncodeToString(sts.ca)+`}}`)
	t.Cleanup(func() {
		node.Kubectl(t, "delete", "serviceaccount/shop", "configmap/sts-ca", "--ignore-not-found")
	})
	node.WaitRunning(t, "shop", node.create(t, fmt.Sprintf(awsPod, "shop", outsideIP))[0])

	withRole := []string{"AWS_ROLE_ARN=" + sts.role(), "AWS_WEB_IDENTITY_TOKEN_FILE=/tokens/aws"}
	otherToken := []string{"AWS_ROLE_ARN=" + sts.role(), "AWS_WEB_IDENTITY_TOKEN_FILE=/tokens/other"}

	step(t, "before: without a role of its own, the pod is the node")
	if arn, _, err := callerIdentity("shop"); err != nil || !strings.Contains(arn, "assumed-role/"+testnode.Role+"/") {
		t.Fatalf("before imds-guard, aws is %q: %v", arn, err)
	}

	node.Install(t, standard)
	node.WaitAgent(t)

	step(t, "after: with a role and a token, the pod is that role")
	arn, took, err := callerIdentity("shop", withRole...)
	if err != nil || !strings.Contains(arn, "assumed-role/shop/") {
		t.Errorf("with its own role, aws is %q: %v", arn, err)
	}
	figures.add(t, "`aws sts get-caller-identity` with IRSA, IMDS blocked", seconds(took))

	step(t, "after: the stand-in refuses a token for another audience")
	if arn, _, err := callerIdentity("shop", otherToken...); err == nil {
		t.Errorf("with a token for another audience, aws is %q", arn)
	} else if !strings.Contains(err.Error(), "InvalidIdentityToken") {
		t.Errorf("with a token for another audience, aws failed by something else: %v", err)
	}

	step(t, "after: without a role of its own, the pod is nobody")
	arn, took, err = callerIdentity("shop")
	if err == nil {
		t.Errorf("without a role, aws still is %q", arn)
	} else if !strings.Contains(err.Error(), "Unable to locate credentials") {
		t.Errorf("without a role, aws failed by something else: %v", err)
	}
	figures.add(t, "`aws sts get-caller-identity` without a role, IMDS blocked: fails", seconds(took))

	_, took, err = callerIdentity("shop", "AWS_EC2_METADATA_DISABLED=true")
	if err == nil {
		t.Error("without a role and without IMDS, aws is somebody")
	}
	figures.add(t, "the same with `AWS_EC2_METADATA_DISABLED=true`", seconds(took))
}

// callerIdentity asks aws in the pod who it is, and returns how long aws took, measured in the pod.
func callerIdentity(pod string, environment ...string) (arn string, took time.Duration, err error) {
	// A home of its own: aws keeps credentials there.
	script := "TIMEFORMAT='took %R'; time env HOME=$(mktemp -d) " + strings.Join(environment, " ") +
		" aws sts get-caller-identity --query Arn --output text"
	out, err := node.Try("timeout", "120", "kubectl", "exec", pod, "--", "bash", "-c", script)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if rest, ok := strings.CutPrefix(line, "took "); ok {
			took, _ = time.ParseDuration(rest + "s")
		} else if strings.HasPrefix(line, "arn:") {
			arn = line
		}
	}
	return arn, took, err
}

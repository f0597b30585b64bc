package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

// client is what a workload's pods run.
type client struct {
	namespace, kind, name string // of the workload
	pods                  int
	command               string // a shell's
	// prints is in the output if it was served, and only then.
	prints string
	// asks is what the report has of it, "VERSION DOCUMENT PRODUCT/N", and advice a part of what that says. Both are empty if it never
	// asks for the endpoint.
	asks, advice string
}

func (c client) workload() string { return c.namespace + "/" + c.kind + "/" + c.name }

// Phrases by which the pieces of advice are told apart.
const (
	giveRole   = "EKS Pod Identity or IRSA"
	setRegion  = "AWS_REGION"
	passRegion = "environment variables"
	moveData   = "ConfigMap"
	lookUp     = "documentation"
)

const (
	imds4       = "http://" + testnode.IMDSv4 + "/latest/"
	imds6       = "http://[" + testnode.IMDSv6 + "]/latest/"
	credentials = "meta-data/iam/security-credentials/" + testnode.Role

	curl = "curl -sSfg "
	// curlV2 prints the token, too.
	curlV2 = "token=$(" + curl + "-X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' " + imds4 + `api/token)
echo "$token"
` + curl + `-H "X-aws-ec2-metadata-token: $token" ` + imds4 + "meta-data/instance-id"
	botocore = `python3 -c '
import botocore.session
c = botocore.session.get_session().get_credentials()
print(c.access_key, c.secret_key, c.token)'`
	// These two send nothing to AWS. Both look for a region and for credentials; presign does without a region.
	presign = "aws s3 presign s3://bucket/key"
	dbToken = "aws rds generate-db-auth-token --hostname db --port 5432 --username u"

	ownKeyID = "AKIAI44QH8DHBEXAMPLE"
	// ownKeys are credentials that a pod has brought along, and advised is who has followed the advice, too.
	ownKeys = "AWS_ACCESS_KEY_ID=" + ownKeyID + " AWS_SECRET_ACCESS_KEY=je7MtGbClwBF/2Zp9Utk/h3yCo8nvbEXAMPLEKEY "
	advised = ownKeys + "AWS_REGION=eu-west-1 AWS_EC2_METADATA_DISABLED=true "
)

// clients are the clients of 30 pods, 8 of which ask.
func clients(sdk string) []client {
	return []client{
		{"shop", "Deployment", "web", 1, curl + imds4 + credentials, testnode.SecretAccessKey,
			"IMDSv1 credentials curl/N", giveRole},
		{"shop", "StatefulSet", "db", 1, curlV2, "i-1234567890abcdef0",
			"IMDSv2 other curl/N, IMDSv2 token curl/N", lookUp},
		{"batch", "CronJob", "nightly", 1, "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6 " + botocore, testnode.SecretAccessKey,
			"IMDSv2 credentials Botocore/N, IMDSv2 token Botocore/N", giveRole},
		{"batch", "Job", "upload", 1, presign, testnode.AccessKeyID,
			"IMDSv2 credentials aws-cli/N, IMDSv2 region and placement aws-cli/N, IMDSv2 token aws-cli/N", giveRole},
		{"batch", "Job", "migrate", 1, ownKeys + dbToken, "us-east-1",
			"IMDSv2 region and placement aws-cli/N, IMDSv2 token aws-cli/N", setRegion},
		{"ops", "DaemonSet", "shipper", 1, sdk + " credentials", testnode.SecretAccessKey,
			"IMDSv2 credentials aws-sdk-go-v2/N, IMDSv2 token aws-sdk-go-v2/N", giveRole},
		{"ops", "Deployment", "scaler", 1, sdk + " region", "us-east-1",
			"IMDSv2 identity document aws-sdk-go-v2/N, IMDSv2 token aws-sdk-go-v2/N", passRegion},
		{"ops", "Pod", "inspect", 1, curl + imds6 + "user-data", "bootstrap.sh",
			"IMDSv1 user data curl/N", moveData},

		{"shop", "Deployment", "front", 4, curl + testnode.Elsewhere4, "ok", "", ""},
		{"shop", "Deployment", "back", 4, curl + "[" + testnode.Elsewhere6 + "]", "ok", "", ""},
		{"shop", "StatefulSet", "cache", 3, curl + "169.254.169.253", "ok", "", ""}, // DNS
		{"shop", "Pod", "look", 1, curl + "[fd00:ec2::253]", "ok", "", ""},
		{"ops", "DaemonSet", "clock", 2, curl + "169.254.169.123", "ok", "", ""},
		{"ops", "DaemonSet", "identity", 3, curl + "169.254.170.23/v1/credentials", "ok", "", ""},
		{"ops", "StatefulSet", "identity6", 2, curl + "[fd00:ec2::23]/v1/credentials", "ok", "", ""},
		{"batch", "Job", "import", 1, advised + dbToken, "eu-west-1", "", ""},
		{"batch", "CronJob", "backup", 1, advised + botocore, ownKeyID, "", ""},
		// What it sends looks like a request to the endpoint, which it is not.
		{"batch", "Pod", "proxied", 1, curl + "-H 'Host: " + testnode.IMDSv4 + "' " + testnode.Elsewhere4 + "/latest/" + credentials, "ok", "", ""},
	}
}

// sdkClient is tools/awsclient, built.
func sdkClient(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/awsclient") // by the Makefile
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return path
	}
	path = filepath.Join(t.TempDir(), "awsclient")
	if out, err := exec.Command("go", "build", "-C", "../../tools", "-o", path, "./awsclient").CombinedOutput(); err != nil {
		t.Fatalf("building awsclient: %v\n%s", err, out)
	}
	return path
}

// cgroups are the names that the kubelet and the runtime give to a container's, by driver and class.
var cgroups = []string{
	"besteffort/pod%s/container",
	"burstable/pod%s/container",
	"pod%s/container", // guaranteed
	"kubepods-besteffort.slice/kubepods-besteffort-pod%s.slice/cri-containerd-0123.scope",
	"kubepods-burstable.slice/kubepods-burstable-pod%s.slice/cri-containerd-0123.scope",
	"kubepods-pod%s.slice/cri-containerd-0123.scope",
}

// cgroupOf is that of the i-th pod.
func cgroupOf(i int, uid string) string {
	name := cgroups[i%len(cgroups)]
	if strings.Contains(name, ".slice") {
		uid = strings.ReplaceAll(uid, "-", "_")
	}
	return fmt.Sprintf(name, uid)
}

// clientPod is a pod of the test node with its client.
type clientPod struct {
	client
	*testnode.Pod
	uid, cgroup string
}

// addClients puts the clients' pods on the node, and tells the API server.
func addClients(n *node, s *api, clients []client) (pods []clientPod) {
	n.t.Helper()
	for _, c := range clients {
		for replica := range c.pods {
			i := len(pods)
			pod, err := n.AddPod(fmt.Sprintf("eni%011d", i))
			if err != nil {
				n.t.Fatal(err)
			}
			uid := podUID(i)
			kind, controller, name := c.kind, c.name, fmt.Sprintf("%s-%d", c.name, replica)
			switch c.kind {
			case "Deployment":
				kind, controller = "ReplicaSet", c.name+"-5f6c8"
			case "CronJob":
				kind, controller = "Job", c.name+"-29012345"
			case "Pod":
				kind, controller, name = "", "", c.name
			}
			s.put(own(c.namespace, name, uid, kind, controller))
			pods = append(pods, clientPod{c, pod, uid, cgroupOf(i, uid)})
		}
	}
	return pods
}

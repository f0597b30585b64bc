//go:build e2e

// Scenario 1: what imds-guard is for.

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/imds-guard/imds-guard/internal/testnode"
)

const credentialsPath = "/latest/meta-data/iam/security-credentials/" + testnode.Role

// A pod without a role of its own reads the node's credentials. The manifest is applied. The same pod no longer can; the
// node itself and a pod in the host's network still can.
func TestSeedStory(t *testing.T) { forEachVariant(t, seedStory) }

func seedStory(t *testing.T, v variant) {
	node.RunPod(t, Pod{Name: "pod", Image: clientImage})
	node.RunPod(t, Pod{Name: "host-network", Image: clientImage, HostNetwork: true})
	reads := func(pod string) error {
		document, err := node.Curl(pod, credentialsPath)
		if err == nil && !strings.Contains(document, testnode.SecretAccessKey) {
			err = fmt.Errorf("no credentials in what %s got: %s", pod, document)
		}
		return err
	}

	step(t, "before: everybody reads the node's credentials")
	for _, pod := range []string{"pod", "host-network"} {
		if err := reads(pod); err != nil {
			t.Fatalf("before imds-guard: %v", err)
		}
	}

	step(t, "kubectl apply -f %s", v.manifest)
	started := time.Now()
	node.Install(t, v)
	node.WaitAgent(t)
	figures.add(t, "from `kubectl apply` to the node protected (pod ready)", seconds(time.Since(started)))

	if document, err := node.Curl("pod", credentialsPath); err == nil {
		t.Errorf("the pod still reads %s", document)
	} else {
		step(t, "after: %v", err)
	}
	if err := reads("host-network"); err != nil {
		t.Errorf("a pod in the host's network must not be blocked: %v", err)
	}
	node.Exec(t, "curl", "-sS", "--fail", "--max-time", "5", "http://"+imdsIP+credentialsPath)
	wait(t, "the blocked request in imds_guard_blocked_packets_total", func() error {
		blocked, err := node.metric("imds_guard_blocked_packets_total", "family=ipv4") // by the first layer that it comes to
		if err != nil || blocked < 1 {
			return fmt.Errorf("it is %v, %v", blocked, err)
		}
		return nil
	})
}

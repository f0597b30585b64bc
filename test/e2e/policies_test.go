//go:build e2e

// Scenario 12: the policies by which the API refuses what leads to the metadata service without a packet of a pod.

package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// What leads to the metadata service is refused, in every spelling, and nothing else is.
func TestPolicies(t *testing.T) {
	begin(t)
	slice := func(family, address string) string {
		return fmt.Sprintf(`{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: e2e}, addressType: %s,
			ports: [{port: 80}], endpoints: [{addresses: [%q]}, {addresses: [%[2]q]}]}`, family, address)
	}
	endpoints := func(where, address string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Endpoints, metadata: {name: e2e}, subsets: [{%s: [{ip: %q}], ports: [{port: 80}]}]}`, where, address)
	}
	inContainer := func(action string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: e2e}, spec: {containers: [
			{name: a, image: a}, {name: b, image: b, %s}]}}`, action)
	}
	inSidecar := func(action string) string {
		return fmt.Sprintf(`{apiVersion: v1, kind: Pod, metadata: {name: e2e}, spec: {containers: [{name: a, image: a}], initContainers: [
			{name: b, image: b, restartPolicy: Always, %s}]}}`, action)
	}
	http := func(host string) string { return fmt.Sprintf(`httpGet: {port: 80, host: %q}`, host) }
	tcp := func(host string) string { return fmt.Sprintf(`tcpSocket: {port: 80, host: %q}`, host) }
	probe := func(kind, action string) string { return fmt.Sprintf(`%s: {%s}`, kind, action) }
	hook := func(kind, action string) string { return fmt.Sprintf(`lifecycle: {%s: {%s}}`, kind, action) }

	refused := map[string]string{
		"a slice":                          slice("IPv6", "fd00:ec2::254"),
		"a slice, spelled out":             slice("IPv6", "fd00:0ec2:0:0:0:0:0:0254"),
		"a slice, in capitals":             slice("IPv6", "FD00:EC2::254"),
		"endpoints":                        endpoints("addresses", "fd00:ec2::254"),
		"endpoints that are not ready":     endpoints("notReadyAddresses", "fd00:ec2:0::254"),
		"a liveness probe":                 inContainer(probe("livenessProbe", http("169.254.169.254"))),
		"a readiness probe":                inContainer(probe("readinessProbe", tcp("fd00:ec2::254"))),
		"a startup probe, with a zone":     inContainer(probe("startupProbe", tcp("fd00:ec2::254%eth0"))),
		"a hook after the start":           inContainer(hook("postStart", http("fd00:ec2:0:0:0:0:0:254"))),
		"a hook before the end, by TCP":    inContainer(hook("preStop", tcp("169.254.169.254"))),
		"a mapped address":                 inContainer(probe("livenessProbe", tcp("::ffff:169.254.169.254"))),
		"a mapped address, in hexadecimal": inContainer(probe("livenessProbe", tcp("::ffff:a9fe:a9fe"))),
		"a number":                         inContainer(probe("livenessProbe", http("2852039166"))),
		"a number in hexadecimal":          inContainer(probe("livenessProbe", http("0xa9fea9fe"))),
		"an init container's probe":        inSidecar(probe("startupProbe", http("169.254.169.254"))),
		"an init container's hook":         inSidecar(hook("postStart", http("169.254.169.254"))),
	}
	allowed := map[string]string{
		"a slice of others":      slice("IPv6", "fd00:ec2::253"),
		"an IPv4 slice":          slice("IPv4", "192.0.2.2"),
		"endpoints of others":    endpoints("addresses", "192.0.2.1"),
		"a probe without a host": inContainer(`livenessProbe: {httpGet: {port: 80}}`),
		"a probe of a name":      inContainer(probe("livenessProbe", http("localhost"))),
		"a probe of a neighbour": inContainer(probe("livenessProbe", tcp("fd00:ec2::253"))),
		"a probe by a command":   inContainer(`readinessProbe: {exec: {command: ["true"]}}, lifecycle: {preStop: {sleep: {seconds: 1}}}`),
	}
	byItself := map[string]bool{}
	for what, manifest := range refused {
		err := node.dryRun(manifest)
		// Newer API servers refuse unusual spellings themselves.
		if byItself[what] = err != nil && strings.Contains(err.Error(), "is invalid"); err != nil && !byItself[what] {
			t.Fatalf("without the policies %s is refused: %v", what, err)
		}
	}
	node.Helm(t, "install", "imds-guard", chart(t), "--create-namespace", "--set", "policies.services=true", "--set", "policies.probes=true")
	policies := []string{"imds-guard-services", "imds-guard-probes"}
	for i, first := range []string{"a slice", "a liveness probe"} {
		wait(t, "the policy "+policies[i]+" to be in force", func() error {
			if err := node.dryRun(refused[first]); err == nil || !strings.Contains(err.Error(), policies[i]) {
				return fmt.Errorf("it says %v", err)
			}
			return nil
		})
	}
	for what, manifest := range refused {
		if err := node.dryRun(manifest); err == nil || !byItself[what] && !strings.Contains(err.Error(), "ValidatingAdmissionPolicy 'imds-guard-") {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, manifest := range allowed {
		if err := node.dryRun(manifest); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

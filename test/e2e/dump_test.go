//go:build e2e

// What somebody wants to see when a test has failed.

package e2e

import (
	"fmt"
	"io"
	"strings"
)

func (n *Node) dump(w io.Writer) {
	fmt.Fprintln(w, "--- the node when the test failed")
	if n.supervisor == nil {
		fmt.Fprintln(w, "it doesn't run")
		n.dumpLogs(w)
		return
	}
	for _, command := range []string{
		"kubectl get nodes,pods -A -o wide",
		"kubectl get events -A --sort-by=.lastTimestamp | tail -n 30",
		"kubectl describe node | sed -n '/^Taints/,/^Addresses/p'",
		"kubectl -n imds-guard describe pods | grep -A 12 -e '^Name:' -e State: -e '^Conditions' -e '^Events'",
		"kubectl -n imds-guard logs -l app.kubernetes.io/name=imds-guard --all-containers --tail=40",
		"kubectl -n imds-guard logs -l app.kubernetes.io/name=imds-guard --all-containers --tail=20 --previous",
		"iptables-nft -S FORWARD",
		"! grep -q filter /proc/net/ip_tables_names || iptables-legacy -S FORWARD",
	} {
		fmt.Fprintln(w, "$", command)
		out, err := n.Try("timeout", "20", "bash", "-c", command)
		fmt.Fprint(w, out)
		if err != nil && out == "" {
			fmt.Fprintln(w, err)
		}
	}
	n.dumpLogs(w)
	fmt.Fprintln(w, "---")
}

func (n *Node) dumpLogs(w io.Writer) {
	for _, component := range []string{"init", "kubelet", "containerd", "kube-apiserver", "kube-proxy"} {
		fmt.Fprintf(w, "$ tail %s/log/%s.log\n", n.State, component)
		fmt.Fprintln(w, strings.Join(n.tail(component, 8), "\n"))
	}
}

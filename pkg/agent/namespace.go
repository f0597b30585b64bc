// Whether the agent is in the node's network namespace.

package agent

import (
	"fmt"
	"net"
	"os"
)

// OutsideNode says in words why this is not the node's network namespace, or nothing. A pod with hostNetwork has the node's
// address; one from which somebody took hostNetwork away, an admission webhook for example, would guard its own namespace,
// in which all looks well. The manifests give both addresses by the downward API (kubernetes.io/docs, status.podIP and
// status.hostIP).
func OutsideNode() string {
	return outside(os.Getenv("POD_IP"), os.Getenv("HOST_IP"), func() []net.Addr {
		addrs, _ := net.InterfaceAddrs() // none: then the two addresses alone decide
		return addrs
	})
}

// outside compares the two addresses. That they differ is no proof yet: on a dual-stack node the kubelet may give them in
// different families, and the node's address may have changed between the two (kubernetes pkg/kubelet, generateAPIPodStatus
// and podFieldSelectorRuntimeValue). Then the node's is one of this namespace all the same.
func outside(pod, host string, local func() []net.Addr) string {
	if pod == "" || host == "" || pod == host {
		return "" // not in a pod, or not told
	}
	node := net.ParseIP(host)
	if node.Equal(net.ParseIP(pod)) && node != nil {
		return ""
	}
	for _, a := range local() {
		if own, ok := a.(*net.IPNet); ok && own.IP.Equal(node) {
			return ""
		}
	}
	return fmt.Sprintf("the pod's address %s is not the node's, %s: this is not the node's network namespace, and rules in it "+
		"block no pod; set hostNetwork: true on the pod, and find out what removes it", pod, host)
}

// Whether the agent is in the node's network namespace.

package agent

import (
	"fmt"
	"net"
	"os"
)

// OutsideNode says why this is not the node's network namespace; empty if it is. A pod with hostNetwork has the node's address.
// One that has lost hostNetwork, to an admission webhook for example, would guard its own namespace, where everything looks
// fine. The manifests pass in both addresses through the downward API (kubernetes.io/docs, status.podIP and status.hostIP).
func OutsideNode() string {
	return outside(os.Getenv("POD_IP"), os.Getenv("HOST_IP"), func() []net.Addr {
		addrs, _ := net.InterfaceAddrs() // if there are none, the two addresses alone decide
		return addrs
	})
}

// outside compares the two addresses. Different addresses alone prove nothing: on a dual-stack node the kubelet may report them
// in different families, and the node's address may have changed in between (kubernetes pkg/kubelet, generateAPIPodStatus and
// podFieldSelectorRuntimeValue). In both cases the node's address is still one of this namespace's.
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

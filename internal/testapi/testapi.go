// Package testapi holds what stand-ins for an API server share: of a node's pods, in tests and measurements.
package testapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Address is where the stand-ins listen, in the node's network.
const Address = "127.0.0.1:6443"

// WriteKubeconfig writes a kubeconfig for the stand-in to a directory, and returns the file's name.
func WriteKubeconfig(directory string) (string, error) {
	file := filepath.Join(directory, "kubeconfig")
	return file, os.WriteFile(file, []byte("clusters: [{name: c, cluster: {server: http://"+Address+"}}]\n"+
		"contexts: [{name: x, context: {cluster: c}}]\ncurrent-context: x\n"), 0o600)
}

// Node answers every request with the Node n.
func Node(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write([]byte(`{"kind":"Node","apiVersion":"v1","metadata":{"name":"n"}}`))
}

// RefuseStreaming answers that the server does not support streaming lists.
func RefuseStreaming(w http.ResponseWriter) {
	w.WriteHeader(http.StatusUnprocessableEntity)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure",
		Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity})
}

// PodUID makes up a UID.
func PodUID(i int) string { return fmt.Sprintf("00000000-0000-4000-8000-%012d", i) }

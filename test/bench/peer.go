//go:build linux

// An agent of others to compare with: NMI of Azure's AAD Pod Identity, which guarded the same address on AKS nodes by an
// iptables rule that it put back on a timer. It is a module of its own (peer/), so that its dependencies are not ours.

package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"time"
)

const (
	peerModule  = "test/bench/peer"
	peerBinary  = "bin/aad-pod-identity-nmi"
	peerPackage = "github.com/Azure/aad-pod-identity/cmd/nmi"
	peerName    = "AAD Pod Identity NMI 1.8.17, default (60 s)"
	peerHow     = "NMI is Azure's own program (archived in 2023), an existing agent that guards the same address, built from " +
		"its Go module and run with its default interval against an empty API server; the rule it loses is its " +
		"jump in `nat` PREROUTING."
	peerPeriod = time.Minute
	apiAddress = "127.0.0.1:8001"
)

// buildPeer builds the peer, unless that was done before.
func buildPeer(ctx context.Context, b *bench) error {
	out, err := filepath.Abs(peerBinary)
	if err != nil {
		return err
	}
	b.log.Print("building the peer agent, which takes a minute the first time")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", out, peerPackage)
	cmd.Dir = peerModule
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building %s: %w\n%s", peerPackage, err, text)
	}
	return nil
}

func peer(f fleet) keeper {
	return keeper{name: peerName, period: peerPeriod, fleet: f, table: "nat", chain: "PREROUTING", command: peerCommand}
}

// peerCommand prepares a node for the peer: an API server, and an `iptables` that is the nft one.
func peerCommand(ctx context.Context, n *node) (*exec.Cmd, error) {
	binary, err := filepath.Abs(peerBinary)
	if err != nil {
		return nil, err
	}
	api, err := n.Host().Listen("tcp", apiAddress)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: http.HandlerFunc(serveEmptyAPI)}
	go server.Serve(api)
	context.AfterFunc(ctx, func() { server.Close() })

	const dir = "/run/peer" // of the node
	err = n.Host().Do(func() error {
		iptables, err := exec.LookPath("iptables-nft")
		if err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := os.Symlink(iptables, path.Join(dir, "iptables")); err != nil {
			return err
		}
		return os.WriteFile(path.Join(dir, "kubeconfig"), []byte(kubeconfig), 0o600)
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the node for the peer: %w", err)
	}
	cmd := n.Command(ctx, binary, "--node", "bench", "--allow-network-plugin-kubenet")
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"), "KUBECONFIG="+path.Join(dir, "kubeconfig"))
	return cmd, nil
}

const kubeconfig = `apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "http://` + apiAddress + `"}}]
contexts: [{name: bench, context: {cluster: bench}}]
current-context: bench
`

// listKinds are the kinds of the lists that the peer asks for.
var listKinds = map[string][2]string{
	"pods":                       {"v1", "PodList"},
	"azureidentities":            {"aadpodidentity.k8s.io/v1", "AzureIdentityList"},
	"azureidentitybindings":      {"aadpodidentity.k8s.io/v1", "AzureIdentityBindingList"},
	"azureassignedidentities":    {"aadpodidentity.k8s.io/v1", "AzureAssignedIdentityList"},
	"azurepodidentityexceptions": {"aadpodidentity.k8s.io/v1", "AzurePodIdentityExceptionList"},
}

// serveEmptyAPI is an API server in which there is nothing and nothing happens.
func serveEmptyAPI(w http.ResponseWriter, r *http.Request) {
	kind, known := listKinds[path.Base(r.URL.Path)]
	if !known {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	if watch := r.URL.Query().Get("watch"); watch == "1" || watch == "true" {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		return
	}
	fmt.Fprintf(w, `{"apiVersion":%q,"kind":%q,"metadata":{"resourceVersion":"1"},"items":[]}`, kind[0], kind[1])
}

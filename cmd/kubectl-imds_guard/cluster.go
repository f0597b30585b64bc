// How to reach the cluster: kubectl's own flags and files.

package main

import (
	"fmt"

	"github.com/spf13/pflag"
	corev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// requestTimeout is the default for a request other than exec.
const requestTimeout = "30s"

// cluster holds what the command line says about the cluster.
type cluster struct {
	files     *clientcmd.ClientConfigLoadingRules
	overrides *clientcmd.ConfigOverrides
	// namespace is where the agents run. The kubeconfig's namespace is not used.
	namespace string
}

func newCluster() *cluster {
	return &cluster{files: clientcmd.NewDefaultClientConfigLoadingRules(), overrides: &clientcmd.ConfigOverrides{}}
}

func (c *cluster) addTo(flags *pflag.FlagSet) {
	flags.StringVar(&c.files.ExplicitPath, clientcmd.RecommendedConfigPathFlag, "", "kubeconfig `file` for reaching the cluster")
	flags.StringVarP(&c.namespace, clientcmd.FlagNamespace, "n", "imds-guard", "namespace of the agents")
	names := clientcmd.RecommendedConfigOverrideFlags("")
	names.ContextOverrideFlags.Namespace = clientcmd.FlagInfo{}
	names.Timeout.Default = requestTimeout
	clientcmd.BindOverrideFlags(c.overrides, flags, names)
}

// config reads how to reach the API server, without making a request.
func (c *cluster) config() (*rest.Config, error) {
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(c.files, c.overrides).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("finding the cluster; see --kubeconfig and --context: %w", err)
	}
	config.UserAgent = "kubectl-imds_guard/" + version
	config.QPS = -1 // no client-side limit: there are only a handful of lists, and the server has limits of its own
	return config, nil
}

// api holds the clients of the API server.
type api struct {
	config *rest.Config
	core   *corev1.CoreV1Client
	// metadata reads objects without spec and status: a Node's status lists kilobytes of images.
	metadata  metadata.Interface
	namespace string
}

func (c *cluster) connect() (*api, error) {
	config, err := c.config()
	if err != nil {
		return nil, err
	}
	core, err := corev1.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for the API server: %w", err)
	}
	meta, err := metadata.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("making a client for the API server: %w", err)
	}
	return &api{config, core, meta, c.namespace}, nil
}

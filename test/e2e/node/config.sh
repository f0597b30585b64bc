#!/usr/bin/env bash
# config.sh: what the node's components are configured with, as files below $state: keys, kubeconfigs, and one file for
# each component that reads one.
set -euo pipefail
source "$(dirname "$0")/env.sh"
pki=$state/pki
mkdir -p "$state"/{bin,log,pki,images,cni/net.d,cni/bin,containerd,kubelet,pods,containers,sysctl}

for component in etcd kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
  ln -sf "$bin/hyperkube" "$state/bin/$component"
done

# --- keys, tokens, kubeconfigs: made once, so that a node that is started again is the same one
kubeconfig() { # NAME TOKEN
  cat >"$pki/$1.conf" <<YAML
apiVersion: v1
kind: Config
clusters: [{name: e2e, cluster: {server: "https://127.0.0.1:6443", certificate-authority: $pki/ca.crt}}]
users: [{name: $1, user: {token: $2}}]
contexts: [{name: e2e, context: {cluster: e2e, user: $1}}]
current-context: e2e
YAML
}
if [[ ! -s $pki/done ]]; then
  {
    openssl genrsa -out "$pki/sa.key" 2048
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=e2e-ca -keyout "$pki/ca.key" -out "$pki/ca.crt"
    openssl req -newkey rsa:2048 -nodes -subj /CN=kube-apiserver -keyout "$pki/apiserver.key" -out "$pki/apiserver.csr"
    names="IP:127.0.0.1,IP:$node_ip,IP:$api_ip"
    names+=",DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
    openssl x509 -req -days 3650 -in "$pki/apiserver.csr" -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial \
      -extfile <(echo "subjectAltName=$names") -out "$pki/apiserver.crt"
  } 2>"$state/log/openssl.log" || { cat "$state/log/openssl.log" >&2; exit 1; }
  admin=$(openssl rand -hex 16)
  kubelet=$(openssl rand -hex 16)
  printf '%s,admin,admin,"system:masters"\n' "$admin" >"$pki/tokens.csv"
  printf '%s,system:node:%s,kubelet,"system:nodes"\n' "$kubelet" "$node" >>"$pki/tokens.csv"
  kubeconfig admin "$admin"
  kubeconfig kubelet "$kubelet"
  date >"$pki/done"
fi

# The audit log has one line for each request of the agent: so its requests can be counted.
cat >"$state/audit.yaml" <<YAML
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: Metadata
  users: ["system:serviceaccount:imds-guard:imds-guard"]
- level: None
YAML

# --- containerd 1.6. restrict_oom_score_adj: a machine without CAP_SYS_RESOURCE can't set a negative oom_score_adj.
cp -f /usr/lib/cni/{host-local,loopback} "$state/cni/bin/"
install -m 755 "$e2e/node/cni-eni.sh" "$state/cni/bin/cni-eni"
cat >"$state/cni/net.d/10-eni.conf" <<JSON
{"cniVersion": "0.4.0", "name": "eni", "type": "cni-eni",
 "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam", "ranges": [[{"subnet": "$pod_cidr"}]]}}
JSON
cat >"$state/containerd.toml" <<TOML
version = 2
root = "$state/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "$state/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "$state/cni/bin"
    conf_dir = "$state/cni/net.d"
TOML

# --- kubelet and kube-proxy. The tests add to the first (taints) and change the second (its mode).
cat >"$state/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
failCgroupV1: false
cgroupDriver: cgroupfs
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
failSwapOn: false
oomScoreAdj: 0
resolvConf: ""
clusterDomain: cluster.local
nodeStatusUpdateFrequency: 2s
maxPods: 200
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%, nodefs.inodesFree: 1%}
imageGCHighThresholdPercent: 100
YAML
cat >"$state/kube-proxy.yaml" <<YAML
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: ${E2E_PROXY_MODE:-iptables}
clientConnection: {kubeconfig: $pki/admin.conf}
hostnameOverride: $node
clusterCIDR: $pod_cidr
oomScoreAdj: 0
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
YAML

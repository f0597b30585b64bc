#!/usr/bin/env bash
# component.sh start|stop NAME [SIGNAL]: one component of the node. Starting a running one is fine. To be run in the node's
# namespaces: by init.sh, and by the tests that stop something and start it again.
set -euo pipefail
source "$(dirname "$0")/env.sh"
verb=$1 name=$2 signal=${3:-TERM}
pki=$state/pki
mkdir -p /run/e2e
pidfile=/run/e2e/$name.pid # its process id and when it started: the id alone may be another process's by now

# started PID: when that process started, as the kernel counts. Nothing if there is none, or only a zombie.
started() {
  local stat fields
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  read -ra fields <<<"${stat##*) }" # from the third field on, the state
  [[ ${fields[0]} == [ZX] ]] || echo "${fields[19]}"
}
# running tells whether the component runs, and sets pid.
running() {
  local since
  [[ -s $pidfile ]] && read -r pid since <"$pidfile" && [[ -n $since && $(started "$pid") == "$since" ]]
}

command_of() {
  case $1 in
  # No fsync: a power failure of the machine may cost the node.
  etcd) command=("$state/bin/etcd" --data-dir "$state/etcd" --unsafe-no-fsync
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
    --listen-peer-urls http://127.0.0.1:2380) ;;
  containerd) command=(containerd -c "$state/containerd.toml") ;;
  kube-apiserver) command=("$state/bin/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 --cert-dir="$pki"
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key"
    --bind-address=0.0.0.0 --advertise-address="$node_ip" --service-cluster-ip-range="$service_cidr"
    --token-auth-file="$pki/tokens.csv" --authorization-mode="Node,RBAC" --enable-admission-plugins=NodeRestriction
    --service-account-issuer=https://kubernetes.default.svc --service-account-key-file="$pki/sa.key"
    --service-account-signing-key-file="$pki/sa.key" --allow-privileged=true
    --kubelet-preferred-address-types=InternalIP
    --audit-policy-file="$state/audit.yaml" --audit-log-path="$state/log/audit.log") ;;
  kube-controller-manager) command=("$state/bin/kube-controller-manager" --kubeconfig="$pki/admin.conf"
    --root-ca-file="$pki/ca.crt" --leader-elect=false --service-account-private-key-file="$pki/sa.key"
    --use-service-account-credentials) ;;
  kube-scheduler) command=("$state/bin/kube-scheduler" --kubeconfig="$pki/admin.conf" --leader-elect=false) ;;
  kubelet) command=("$state/bin/kubelet" --config="$state/kubelet.yaml" --kubeconfig="$pki/kubelet.conf"
    --node-ip="$node_ip" --hostname-override="$node") ;;
  kube-proxy) command=("$state/bin/kube-proxy" --config="$state/kube-proxy.yaml") ;;
  imds) command=(ip netns exec outside "$bin/tool" imds "$imds_ip:80") ;;
  *) echo "unknown component $1" >&2; exit 2 ;;
  esac
}

case $verb in
start)
  if running; then exit 0; fi
  command_of "$name"
  setsid "${command[@]}" >>"$state/log/$name.log" 2>&1 </dev/null &
  echo "$! $(started $!)" >"$pidfile"
  ;;
stop)
  if running; then kill -s "$signal" "$pid" 2>/dev/null || true; fi
  while running; do sleep 0.05; done
  rm -f "$pidfile"
  ;;
*) echo "usage: component.sh start|stop NAME [SIGNAL]" >&2; exit 2 ;;
esac

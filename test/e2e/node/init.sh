#!/usr/bin/env bash
# init.sh: process 1 of the node. run.sh starts it in namespaces of its own (pid, mount, net, uts, ipc, cgroup). So nothing
# below touches the machine's interfaces, firewall, mounts or sysctls, and every process of the node dies with this one.
set -euo pipefail
source "$(dirname "$0")/env.sh"
here=$e2e/node

hostname "$node"

# --- mounts: the /sys of this network namespace, cgroups from our own downwards, a /run that a reboot empties
mount --make-rshared /
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs /sys
mount -t bpf -o nosuid,nodev,noexec,mode=700 bpf /sys/fs/bpf
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
while IFS=: read -r id controllers _; do
  if [[ $id = 0 ]]; then # version 2, beside the others: runc puts containers there as well
    mkdir /sys/fs/cgroup/unified
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup/unified
    continue
  fi
  directory=/sys/fs/cgroup/${controllers#name=}
  mkdir "$directory"
  mount -t cgroup -o "${controllers/name=systemd/none,name=systemd}" cgroup "$directory"
done </proc/self/cgroup
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /var/lib/kubelet /var/log/pods /var/log/containers
mount --bind "$state/kubelet" /var/lib/kubelet
mount --bind "$state/pods" /var/log/pods
mount --bind "$state/containers" /var/log/containers
mount --make-rshared /var/lib/kubelet
# The kubelet sets these for the whole machine (kernel.panic_on_oops!). It gets files to write to instead.
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  file=$state/sysctl/$(tr / . <<<"${setting%=*}")
  echo "${setting#*=}" >"$file"
  mount --bind "$file" "/proc/sys/${setting%=*}"
done

# --- network: eth0 leads to a namespace that is the VPC's gateway and has the metadata service
ip link set lo up
ip netns add outside
ip link add eth0 type veth peer name vpc netns outside
ip addr add "$node_ip/24" dev eth0
ip link set eth0 up
ip -n outside -batch - <<BATCH
link set lo up
addr add $outside_ip/24 dev vpc
link set vpc up
addr add $imds_ip/32 dev lo
route add $pod_cidr via $node_ip
BATCH
ip route add default via "$outside_ip"
sysctl -qw net.ipv4.ip_forward=1
"$here/component.sh" start imds

# --- control plane, and the images meanwhile: before the kubelet, so that nothing is ever pulled
for component in etcd containerd kube-apiserver; do "$here/component.sh" start $component; done
until ctr version >/dev/null 2>&1; do sleep 0.1; done
for archive in "$images"/*.tar "$state"/images/*.tar; do
  stamp=$state/containerd/${archive##*/}.imported
  [[ ! $stamp -nt $archive ]] || continue
  ctr -n k8s.io images import "$archive" >/dev/null
  touch "$stamp"
done
progress "the images are in containerd"
until curl -sk --max-time 2 https://127.0.0.1:6443/readyz | grep -q '^ok'; do sleep 0.1; done
progress "the API server is ready"

# --- the rest. A test that wants another order (a node that joins later) holds something back.
for component in kube-controller-manager kube-scheduler kubelet kube-proxy; do
  case " ${E2E_HOLD:-} " in
  *" $component "*) ;;
  *) "$here/component.sh" start $component ;;
  esac
done
progress "the components run"
touch /run/e2e/up

# Process 1 reaps what lost its parent: bash does so while it waits.
while :; do sleep 3600 & wait $! || true; done

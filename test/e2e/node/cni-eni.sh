#!/usr/bin/env bash
# cni-eni.sh: a CNI plugin that connects a pod as the Amazon VPC CNI does. The host side of its veth is eni and 11 hex
# digits; the pod has a /32 and its default route over 169.254.1.1, which is nobody's address but has a static ARP entry;
# the host has a route to the pod. Addresses come from host-local.
set -euo pipefail

config=$(cat)
ipam=$(dirname "$0")/host-local
host=eni$(sha1sum <<<"$CNI_CONTAINERID" | cut -c1-11)

add() {
  local address mac pod=${CNI_NETNS##*/}   # containerd makes it in /run/netns, where ip looks too
  address=$("$ipam" <<<"$config" | tr -d ' \n' | sed -n 's/.*"address":"\([0-9.]*\)\/[0-9]*".*/\1/p')
  ip link add "$host" type veth peer name "$CNI_IFNAME" netns "$pod"
  ip link set "$host" up
  mac=$(<"/sys/class/net/$host/address")
  ip -n "$pod" -batch - <<BATCH
link set lo up
addr add $address/32 dev $CNI_IFNAME
link set $CNI_IFNAME up
route add 169.254.1.1 dev $CNI_IFNAME scope link
route add default via 169.254.1.1 dev $CNI_IFNAME
neigh add 169.254.1.1 lladdr $mac dev $CNI_IFNAME nud permanent
BATCH
  ip route replace "$address/32" dev "$host" scope link
  cat <<JSON
{"cniVersion": "0.4.0", "dns": {}, "interfaces": [{"name": "$host"}, {"name": "$CNI_IFNAME", "sandbox": "$CNI_NETNS"}],
 "ips": [{"version": "4", "address": "$address/32", "interface": 1}]}
JSON
}

case $CNI_COMMAND in
ADD) add ;;
DEL)
  "$ipam" <<<"$config" || true
  ip link del "$host" 2>/dev/null || true
  ;;
CHECK) ;;
VERSION) echo '{"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0"]}' ;;
esac

# shellcheck shell=bash
# shellcheck disable=SC2034  # read by the scripts that source this
# Names and paths, for every script here. What is shared by all nodes of this machine lives in $E2E_CACHE; what belongs to
# one node is named after $E2E_NAME, so that two nodes can run side by side.

: "${E2E_CACHE:=${XDG_CACHE_HOME:-$HOME/.cache}/imds-guard-e2e}"
: "${E2E_NAME:=e2e}"

e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
repository=$(cd "$e2e/../.." && pwd)

bin=$E2E_CACHE/bin            # Kubernetes and the tool
images=$E2E_CACHE/images      # images that all nodes have
state=$E2E_CACHE/node-$E2E_NAME
cgroup=imds-guard-e2e-$E2E_NAME

releases=(v0.1.0 v0.1.1)      # our own image's, in $state/images

node=$E2E_NAME                # the node's name in Kubernetes
node_ip=10.77.0.2             # eth0, in the node's own network namespace
outside_ip=10.77.0.1          # the other end: the VPC's gateway
imds_ip=169.254.169.254       # outside, behind the gateway
pod_cidr=10.244.0.0/23
service_cidr=10.96.0.0/16
api_ip=10.96.0.1

progress() { printf '%(%H:%M:%S)T %s\n' -1 "$*" >&2; }

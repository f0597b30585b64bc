#!/usr/bin/env bash
# enter.sh [COMMAND...]: a command, or a shell, on the running node. For example:
#
#   test/e2e/node/enter.sh kubectl get pods -A
#   test/e2e/node/enter.sh iptables-nft -S FORWARD
set -euo pipefail
source "$(dirname "$0")/env.sh"
# By its cgroup too: the number may be left from a node that could not end in order, and be another process's by now.
if ! init=$(cat "$state/init.pid" 2>/dev/null) || ! grep -q "/$cgroup\$" "/proc/$init/cgroup" 2>/dev/null; then
  echo "no node $E2E_NAME runs" >&2
  exit 1
fi
export KUBECONFIG=$state/pki/admin.conf PATH=$state/bin:$PATH
[[ $# -gt 0 ]] || set -- bash
exec nsenter -t "$init" -m -n -u -i -p -C -- "$@"

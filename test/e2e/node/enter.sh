#!/usr/bin/env bash
# enter.sh [COMMAND...]: a command, or a shell, on the running node. For example:
#
#   test/e2e/node/enter.sh kubectl get pods -A
#   test/e2e/node/enter.sh iptables-nft -S FORWARD
set -euo pipefail
source "$(dirname "$0")/env.sh"
[[ -s $state/init.pid ]] || { echo "no node $E2E_NAME runs" >&2; exit 1; }
export KUBECONFIG=$state/pki/admin.conf PATH=$state/bin:$PATH
[[ $# -gt 0 ]] || set -- bash
exec nsenter -t "$(<"$state/init.pid")" -m -n -u -i -p -C -- "$@"

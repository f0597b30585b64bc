#!/usr/bin/env bash
# run.sh: one node, from its first process to its last. It runs until its standard input ends, so it can't outlive the
# program that started it, however that ended. By hand, until Ctrl-D:
#
#   test/e2e/node/run.sh
#
# E2E_KEEP=1 keeps the cluster (etcd, the kubelet's files) of the last run: a reboot.
set -euo pipefail
source "$(dirname "$0")/env.sh"
here=$e2e/node
mkdir -p "$state"
# Whatever may outlive this script is started without the lock, by 9>&-.
exec 9>"$state/lock"
flock -n 9 || { echo "a node $E2E_NAME runs already: choose another E2E_NAME" >&2; exit 1; }
rm -f "$state/init.pid" # of a run.sh that was killed itself

# Removing a cgroup is possible only when its last process is gone.
remove_cgroups() {
  local root try
  for root in /sys/fs/cgroup/*/"$cgroup"; do
    [[ -d $root ]] || continue
    for try in {1..100}; do
      find "$root" -depth -type d -exec rmdir {} \; 2>/dev/null || true
      [[ -d $root ]] || break
      sleep 0.1
    done
    [[ ! -d $root ]] || echo "could not remove the cgroup $root after $try tries" >&2
  done
}
stop() {
  # images.sh with all that it has started. (If it has not begun yet, it leads no process group.)
  [[ -z ${making:-} ]] || kill -- "-$making" 2>/dev/null || kill "$making" 2>/dev/null || true
  [[ -z ${told:-} ]] || kill "$told" 2>/dev/null || true
  # The namespaces' first process dies with unshare, and everything in them with it.
  [[ -z ${unshare:-} ]] || { kill -KILL "$unshare" 2>/dev/null && wait "$unshare"; } 2>/dev/null || true
  rm -f "$state/init.pid"
  remove_cgroups
}
trap stop EXIT
remove_cgroups # of a run.sh that was killed itself

# Ends when our standard input does: then nobody wants the node any more. It must not read on if we are killed ourselves.
exec 3<&0
setpriv --pdeathsig KILL cat <&3 >/dev/null 3<&- 9>&- &
told=$!
exec 3<&-

# A node of a new name has no images of our own yet.
for release in "${releases[@]}"; do
  [[ ! -s $state/images/$release.tar ]] || continue
  progress "the node $E2E_NAME has no images yet: making them, in about a minute"
  setsid "$here/images.sh" </dev/null 9>&- &
  making=$!
  wait -n -p ended "$making" "$told"
  [[ $ended == "$making" ]] || exit 0
  making=''
  break
done

if [[ ${E2E_KEEP:-} != 1 ]]; then
  rm -rf "$state"/{etcd,kubelet,pods,containers,log}
fi
"$here/config.sh" 9>&-

# A cgroup of its own in every hierarchy: the node sees only what is below.
for directory in /sys/fs/cgroup/*/; do
  directory=${directory%/}
  mountpoint -q "$directory" || continue # no hierarchy of its own
  mkdir "$directory/$cgroup"
  case ${directory##*/} in
  cpuset) for file in cpuset.cpus cpuset.mems; do cat "$directory/$file" >"$directory/$cgroup/$file"; done ;;
  esac
done
(
  for file in /sys/fs/cgroup/*/"$cgroup"/cgroup.procs; do echo $BASHPID >"$file"; done
  exec setpriv --pdeathsig KILL nice unshare --fork --kill-child --pid --mount --propagation private --mount-proc \
    --net --uts --ipc --cgroup "$here/init.sh" >"$state/log/init.log" 2>&1 9>&- </dev/null
) &
unshare=$!
until init=$(pgrep -P "$unshare"); do
  kill -0 "$unshare" || exit 1
  sleep 0.05
done
echo "$init" >"$state/init.pid"

# Whichever is first: we are told to stop, or the node dies.
wait -n "$unshare" "$told" || true
if ! kill -0 "$unshare" 2>/dev/null; then
  echo "the node $E2E_NAME died:" >&2
  tail -n 20 "$state/log/init.log" >&2
  exit 1
fi

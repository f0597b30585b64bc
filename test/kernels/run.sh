#!/usr/bin/env bash
# run.sh VERSION…: runs the enforcement tests of all layers under kernels of EKS nodes, beside each other: the tests wait more
# than they compute.
#
# They are those that run on this machine's kernel, too, as static binaries without the race detector, and those of the build
# tag kernels, which need modules that this machine may not have. A test that a kernel can't run fails: which features are
# there is known.
set -euo pipefail
cd "$(dirname "$0")/../.."
dir=$(mktemp -d) logs=$(mktemp -d)
booted=()
# Background jobs take no Ctrl-C: each is a group of its own, and ended with its QEMU.
set -m
# shellcheck disable=SC2317  # the trap calls it
end() {
  for pid in "${booted[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
  rm -rf "$dir" "$logs"
}
trap end EXIT
trap 'exit 130' INT TERM
export CGO_ENABLED=0
go build -o "$dir/imds-guard" ./cmd/imds-guard
for package in pkg/netfilter pkg/rules pkg/route pkg/cgroup pkg/datapath pkg/probe test/agent; do
  go test -c -tags kernels -o "$dir/$(basename $package).test" ./$package
done
cat >"$dir/test.sh" <<'TEST'
export IMDS_GUARD_BINARY=/imds-guard
failed=0
run() { # NAME ARGUMENT…
  name=$1; shift
  echo "== $name"
  "/$name.test" -test.timeout 20m "$@" || failed=1
}
run route
run cgroup
run datapath
run probe
run netfilter
run rules -test.run 'TestUnsupported|TestSelector|TestCleanupOfOurOwnTable'
agent='Sockets|OffloadedFlow|PastForward|AuditMode$|DriftIsRepaired|BothLayers|Paths|TestUpgrade'
# All of them under the oldest kernel: what it can do, and this machine's, those in between can. (OffloadedFlow does not run here.)
case $(uname -r) in
6.1.*) agent=$agent'|TamperStorm|Bypass|CheckProbe|HostNetworkPodsAlone|ForeignRulesStay|OpenConnectionIsCut|WhoIsBlocked|LostPieces'
  agent=$agent'|Degraded|WithoutIptables|RouteAlone|BeforeTheSink|BesideTheVPCCNI|CutByTheRoute' ;;
esac
run agent -storm.time 15s -test.run "$agent"
exit $failed
TEST
failed=0
for version in "$@"; do
  (test/kernels/boot.sh "$version" "$dir" 1800 | sed -u "s/^/$version: /" | tee "$logs/$version") &
  booted+=($!)
done
for pid in "${booted[@]}"; do wait "$pid" || failed=1; done
# Repeats what failed, which the agents' logs would bury.
((!failed)) || grep -h -e '--- FAIL' -e '_test.go:' "$logs"/* || true
exit $failed

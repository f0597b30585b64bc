#!/usr/bin/env bash
# build.sh: Kubernetes, etcd and the tests' own tool, from source, into $E2E_CACHE/bin. Go's build cache makes every run but
# the first one short.
set -euo pipefail
source "$(dirname "$0")/env.sh"
mkdir -p "$bin"
export CGO_ENABLED=0

# Says every half minute that it is alive, and how far it is: the first build compiles a few thousand packages.
build_kubernetes() {
  local version log started
  cd "$e2e/hyperkube"
  version=$(go list -m -f '{{.Version}}' k8s.io/kubernetes)
  progress "building Kubernetes $version from source: 12 to 20 minutes the first time on 2 cores, seconds afterwards"
  # Binaries that upstream has not stamped call themselves v0.0.0-master, and the components compare their versions.
  local stamp='' package minor=${version#v1.}
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    stamp+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=${minor%%.*}"
    stamp+=" -X $package.gitCommit=unknown -X $package.gitTreeState=clean"
  done

  log=$bin/build.log
  started=$SECONDS
  nice go build -v -trimpath -ldflags "-s -w$stamp" -o "$bin/hyperkube.new" . >"$log" 2>&1 &
  local build=$!
  trap 'kill "$build" 2>/dev/null || true' EXIT
  while kill -0 "$build" 2>/dev/null; do
    sleep 1
    (((SECONDS - started) % 30)) || progress "  $(((SECONDS - started) / 60)) min, $(grep -vc downloading "$log") packages"
  done
  wait "$build" || {
    tail -n 30 "$log" >&2
    exit 1
  }
  trap - EXIT
  # A running node keeps the file that it was started with.
  mv "$bin/hyperkube.new" "$bin/hyperkube"
  progress "Kubernetes is built, after $((SECONDS - started)) s"
}

(build_kubernetes)
cd "$repository"
nice go build -trimpath -ldflags '-s -w' -o "$bin/tool" ./test/e2e/tool

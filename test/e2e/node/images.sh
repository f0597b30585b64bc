#!/usr/bin/env bash
# images.sh: all images that the node needs, without a registry. Static ones are made once. Our own is built each run, from
# the Dockerfile, under the names of two releases.
#
# A further image for a test: a directory images/NAME with a Containerfile. It becomes e2e.local/NAME:1.
set -euo pipefail
source "$(dirname "$0")/env.sh"
here=$e2e/node
mkdir -p "$images" "$state/images"
# Two nodes may be started at once.
exec 9>"$E2E_CACHE/images.lock"
flock 9

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"

have() { "$here/buildah.sh" inspect --type image "$1" >/dev/null 2>&1; }

# --- the tool: pause, and the pods that ask the metadata service
tool_image() {
  [[ $images/tool.tar -nt $bin/tool ]] && return
  mkdir "$work/tool"
  cp "$bin/tool" "$work/tool/tool"
  "$here/mkimage.sh" "$images/tool.tar" "$work/tool" '["/tool"]' e2e.local/tool:1
  "$here/mkimage.sh" "$images/pause.tar" "$work/tool" '["/tool", "pause"]' registry.k8s.io/pause:3.10
}

# --- the base images that Dockerfiles name
debian_image() {
  local name=docker.io/library/debian:bookworm-slim
  have $name && return
  progress "making $name with debootstrap: about a minute"
  debootstrap --variant=minbase bookworm "$work/debian" >"$E2E_CACHE/debootstrap.log" ||
    { tail -n 20 "$E2E_CACHE/debootstrap.log" >&2; return 1; }
  # As in the official image: with updates and security fixes, from where debootstrap has got the rest.
  local list=$work/debian/etc/apt/sources.list mirror source
  mirror=$(awk '$1 == "deb" { sub("/$", "", $2); print $2; exit }' "$list")
  for source in "$mirror bookworm" "$mirror bookworm-updates" "$mirror-security bookworm-security"; do
    echo "deb $source main"
  done >"$list"
  rm -rf "$work"/debian/var/cache/apt/archives/*.deb
  "$here/mkimage.sh" "$work/debian.tar" "$work/debian" '["/bin/sh"]' $name
  "$here/buildah.sh" pull -q "docker-archive:$work/debian.tar" >/dev/null
}

# Debian's, plus the Go that this machine has.
golang_image() {
  local name=docker.io/library/golang:1.26 container root go
  go=$(go env GOVERSION)
  [[ $go == go1.26* ]] || { echo "the Dockerfile builds with Go 1.26, and this is $go" >&2; return 1; }
  local label='{{index .OCIv1.Config.Labels "go"}}'
  [[ $("$here/buildah.sh" inspect --type image --format "$label" $name 2>/dev/null) == "$go" ]] && return
  progress "making $name from $(go env GOROOT)"
  container=$("$here/buildah.sh" from --pull-never docker.io/library/debian:bookworm-slim)
  root=$("$here/buildah.sh" mount "$container")
  mkdir "$root/go"
  cp -a "$(go env GOROOT)" "$root/usr/local/go"
  "$here/buildah.sh" config --label "go=$go" --workingdir /go --env GOPATH=/go --env GOTOOLCHAIN=local \
    --env PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
  "$here/buildah.sh" commit -q --rm "$container" $name >/dev/null
}

# build NAME:TAG OUT.tar ARGUMENTS...: one image by buildah. The certificates are the machine's: behind a proxy that signs
# its own, a bare Debian would trust nothing. They don't become part of the image.
build() {
  local name=$1 out=$2 log=$E2E_CACHE/build-${1//[\/:]/_}.log
  shift 2
  "$here/buildah.sh" bud --pull-never --layers --volume /etc/ssl/certs:/etc/ssl/certs:ro -t "$name" "$@" >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; return 1; }
  rm -f "$out.new"
  "$here/buildah.sh" push -q "$name" "docker-archive:$out.new:$name"
  mv "$out.new" "$out"
}

test_images() {
  local file directory name
  for file in "$e2e"/images/*/Containerfile; do
    directory=${file%/*}
    name=${directory##*/}
    [[ -s $images/$name.tar && -z $(find "$directory" -newer "$images/$name.tar") ]] && continue
    progress "building the image e2e.local/$name:1"
    build "e2e.local/$name:1" "$images/$name.tar" -f "$file" "$directory"
  done
}

# Go's caches are this machine's, so that a run compiles what has changed. The build is the Dockerfile's all the same. The name is
# what the plain manifests have, so that they can be applied as they are.
own_image() {
  local name=your-registry.invalid/imds-guard release
  for release in "${releases[@]}"; do
    progress "building $name:$release from the Dockerfile"
    build "$name:$release" "$state/images/$release.tar" --build-arg "VERSION=$release" --build-arg COMMIT=e2e \
      --volume "$(go env GOCACHE):/root/.cache/go-build" --volume "$(go env GOMODCACHE):/go/pkg/mod" "$repository"
  done
}

tool_image
debian_image
golang_image
test_images
own_image
progress "the images are ready"

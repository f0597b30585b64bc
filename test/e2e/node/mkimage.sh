#!/usr/bin/env bash
# mkimage.sh OUT.tar ROOTDIR ENTRYPOINT-JSON NAME:TAG...: one directory as an image of one layer, in the format of `docker
# save`, which containerd and buildah both read. The same directory gives the same image.
set -euo pipefail

out=$1 root=$2 entrypoint=$3
shift 3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

tar -C "$root" --numeric-owner --owner=0 --group=0 --sort=name --mtime=@0 -cf "$work/layer.tar" .
layer=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
cat >"$work/config.json" <<JSON
{"architecture": "$(dpkg --print-architecture)", "os": "linux", "created": "1970-01-01T00:00:00Z",
 "config": {"Entrypoint": $entrypoint,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$layer"]},
 "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "mkimage.sh"}]}
JSON
config=$(sha256sum "$work/config.json" | cut -d' ' -f1).json
mv "$work/config.json" "$work/$config"
printf -v tags '"%s",' "$@"
echo "[{\"Config\": \"$config\", \"RepoTags\": [${tags%,}], \"Layers\": [\"layer.tar\"]}]" >"$work/manifest.json"
tar -C "$work" -cf "$out.new" manifest.json "$config" layer.tar
mv "$out.new" "$out"

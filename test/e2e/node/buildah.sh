#!/usr/bin/env bash
# buildah.sh ARGUMENTS...: buildah with a store of its own below $E2E_CACHE. chroot isolation: no runc, no cgroup.
set -euo pipefail
source "$(dirname "$0")/env.sh"
export BUILDAH_ISOLATION=chroot
exec nice buildah --root "$E2E_CACHE/buildah" --runroot "$E2E_CACHE/buildah-run" --storage-driver overlay "$@"

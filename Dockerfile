# The imds-guard image: our static binary, both iptables backends, nothing else.
#
# Why `scratch` plus copied files, and not debian or distroless:
#  * The container is privileged and in the host's network. Without a shell, a
#    package manager or any other tool in it, there is little to work with for
#    somebody who gets code to run there.
#  * Size: a node pulls this image before it is protected, so every megabyte is
#    time in which pods may reach the metadata service.
#  * The common distroless images have no iptables: its files would be copied all
#    the same.
#
# Updates come by building again: nothing in the image updates itself. With
# `--pull --no-cache` a build takes the current Go 1.26 and the current Debian
# packages, security fixes included. Scanners can tell when that is due: they
# find the Debian packages by /var/lib/dpkg/status.d (see below).

# --- the agent -------------------------------------------------------------
# Compiles on the builder's own platform: Go cross-compiles, which is much
# faster than running the compiler in an emulator.
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26 AS build
WORKDIR /src
# The modules have a layer of their own: a change to the source doesn't fetch
# them again.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ARG COMMIT=unknown
# CGO_ENABLED=0: the binary must not need a C library.
RUN CGO_ENABLED=0 GOOS=$TARGETOS GOARCH=$TARGETARCH \
    go build -trimpath -ldflags "-s -w -X main.version=$VERSION -X main.commit=$COMMIT" \
    -o /out/imds-guard ./cmd/imds-guard

# --- iptables --------------------------------------------------------------
# Runs on the target's platform, because these packages are not built here.
FROM docker.io/library/debian:bookworm-slim AS iptables
# upgrade: the C library comes from the base image, which may be weeks old.
RUN apt-get update && apt-get upgrade -y && \
    apt-get install -y --no-install-recommends iptables kmod

# /rootfs becomes the root of the image. What goes in, and why:
#  * xtables-nft-multi and xtables-legacy-multi, under the names that say which
#    backend is meant. There is no plain `iptables`: on a node with the other
#    backend it would silently be the wrong one.
#  * All IPv4 and IPv6 extensions, not just those of our own rules: to list a
#    chain, iptables needs the extension of every rule in it, whoever made it.
#    (ebtables' and arptables' are left out.)
#  * modprobe: iptables-legacy runs it when ip_tables or ip6_tables isn't loaded
#    yet. nft needs no help, there the kernel loads its modules itself.
#  * Their libraries and the loader, as ldd finds them.
#  * Of each package they come from: the licence, and the package's record in
#    the place where scanners look in images without a package manager.
# Not needed, tried without: /etc/protocols and /etc/services (iptables knows
# the usual protocols by itself and prints the others as numbers),
# /etc/ethertypes (ebtables only), ld.so.cache (Debian's library paths are
# compiled into the loader).
RUN set -eu; \
    for d in bin lib lib64 sbin; do mkdir -p /rootfs/usr/$d; ln -s usr/$d /rootfs/$d; done; \
    mkdir -p /rootfs/etc /rootfs/run /rootfs/var/lib/dpkg/status.d; \
    ln -s /run /rootfs/var/run; \
    # The programs and extensions, then with their libraries. ldd's output has
    # the names that it was given, too.
    wanted="/usr/sbin/xtables-nft-multi /usr/sbin/xtables-legacy-multi /usr/bin/kmod"; \
    for ext in xt ipt ip6t; do wanted="$wanted $(echo /usr/lib/*/xtables/lib${ext}_*.so)"; done; \
    ldd $wanted > /tmp/ldd; \
    if grep 'not found' /tmp/ldd; then exit 1; fi; \
    files=$(grep -o '/[^ :]*' /tmp/ldd | sort -u); \
    cp -L --parents $files /rootfs; \
    for backend in nft legacy; do for family in iptables ip6tables; do for verb in '' -restore -save; do \
        ln -s xtables-$backend-multi /rootfs/usr/sbin/$family-$backend$verb; \
    done; done; done; \
    ln -s ../bin/kmod /rootfs/usr/sbin/modprobe; \
    # dpkg knows some files by /lib and some by /usr/lib, hence by their last part.
    for f in $files; do dpkg -S "*/${f##*/}"; done > /tmp/owners; \
    for p in $(cut -d: -f1 /tmp/owners | sort -u); do \
        cp -L --parents /usr/share/doc/$p/copyright /rootfs; \
        dpkg -s $p > /rootfs/var/lib/dpkg/status.d/$p; \
    done; \
    # The licences that the copyright files refer to, and the release's name
    # for scanners.
    cp -a --parents /usr/share/common-licenses /rootfs; \
    cp -L /etc/os-release /etc/debian_version /rootfs/etc/

# --- the image -------------------------------------------------------------
FROM scratch
COPY --from=iptables /rootfs/ /
COPY --from=build /out/imds-guard /usr/local/bin/imds-guard
# modprobe and the agent's `iptables-nft` are looked up here.
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
ARG VERSION=dev
ARG COMMIT=unknown
# licenses: imds-guard's own. Those of the Debian packages are in
# /usr/share/doc/*/copyright.
LABEL org.opencontainers.image.title="imds-guard" \
      org.opencontainers.image.description="Keeps pods on EKS nodes away from the EC2 instance metadata service" \
      org.opencontainers.image.source="https://github.com/imds-guard/imds-guard" \
      org.opencontainers.image.url="https://github.com/imds-guard/imds-guard" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$COMMIT"
# Root (there is no other user here): editing iptables needs it.
ENTRYPOINT ["/usr/local/bin/imds-guard"]
CMD ["run"]

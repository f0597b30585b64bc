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
# Both stages run on the builder's own platform, for whatever platform the image
# is: Go cross-compiles, and nothing from Debian's packages is run. So an image
# for the other architecture needs no emulator.
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
RUN GOOS=$TARGETOS GOARCH=$TARGETARCH hack/build /out ./cmd/imds-guard

# --- iptables --------------------------------------------------------------
# hack/rootfs/main.go says what goes in, and why.
FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26 AS iptables
WORKDIR /src
COPY hack/rootfs .
ARG TARGETARCH
RUN go run *.go --arch "$TARGETARCH" --out /rootfs

# --- the image -------------------------------------------------------------
# `make release` makes this stage by itself, from what is written here.
FROM scratch
COPY --from=iptables /rootfs/ /
COPY LICENSE THIRD_PARTY_NOTICES /usr/share/doc/imds-guard/
COPY --from=build /out/imds-guard /usr/local/bin/imds-guard
# modprobe and the agent's `iptables-nft` are looked up here.
ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin
ARG VERSION=dev
ARG COMMIT=unknown
# licenses: imds-guard's own. Those of everything else in the image are in
# /usr/share/doc.
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

#!/usr/bin/env bash
# boot.sh VERSION DIR [SECONDS]: boots Debian's cloud kernel of that series (6.1, 6.12, …; the newest that apt has) in QEMU,
# without KVM, with DIR laid over a small root, runs DIR/test.sh there as root, and ends with its exit status.
#
# Kernels and the root are kept in KERNELS_CACHE (default ~/.cache/imds-guard-kernels).
set -euo pipefail
version=$1 dir=$2 limit=${3:-900}
cache=${KERNELS_CACHE:-$HOME/.cache/imds-guard-kernels}
packages=(busybox-static dash ipvsadm iproute2 iptables kmod nftables util-linux) # whose programs are in the root
mkdir -p "$cache"

# kernel VERSION: unpacks the kernel, and of its modules those that a node's network may need.
kernel() {
  local new=$1.new package release modules d
  rm -rf "$new"
  newest() { apt-cache pkgnames "linux-image-$version." | grep -E '[0-9]-cloud-amd64$' | sort -V | tail -n 1; }
  package=$(newest) || { apt-get update -qq; package=$(newest) || true; }
  [[ -n $package ]] || { echo "apt has no cloud kernel $version: is the distribution's backports or security archive missing?" >&2; exit 2; }
  echo "fetching $package" >&2
  (cd "$cache" && apt-get -o APT::Sandbox::User=root download -qq "$package")
  dpkg-deb -x "$cache/$package"_*.deb "$new"
  rm -f "$cache/$package"_*.deb
  release=$(ls "$new/lib/modules")
  modules=$new/lib/modules/$release/kernel
  for d in "$modules"/*; do
    case ${d##*/} in net | drivers | lib | crypto | arch) ;; *) rm -rf "$d" ;; esac
  done
  for d in "$modules"/drivers/*; do [[ ${d##*/} = net ]] || rm -rf "$d"; done
  rm -rf "$modules"/drivers/net/{ethernet,wireless,usb,phy,wan,can,hyperv,fddi,ppp,hamradio}
  find "$modules" -name '*.ko.xz' -print0 | xargs -0 -r unxz
  depmod -b "$new" "$release"
  (cd "$new" && find lib | cpio -o -H newc --quiet | gzip -1) >"$new/modules.cpio.gz"
  mv "$new" "$1"
}

# add PROGRAM PLACE: copies a program into the root, with its libraries.
add() {
  local file library
  file=$(readlink -f "$(command -v "$1")")
  rm -f "$root/$2"
  cp "$file" "$root/$2"
  for library in $(ldd "$file" | grep -o '/[^ ]*'); do
    mkdir -p "$root$(dirname "$library")"
    cp -Ln "$library" "$root$library"
  done
}

# make_root: busybox, and what the tests call.
make_root() {
  local applet backend family verb
  mkdir -p "$root"/{bin,sbin,proc,sys,dev,tmp,run,etc,lib,lib64,usr,root,mnt}
  for d in bin sbin lib; do ln -s ../$d "$root/usr/$d"; done
  cp /bin/busybox "$root/bin/"
  for applet in $(/bin/busybox --list); do [[ $applet = busybox ]] || ln -sf busybox "$root/bin/$applet"; done
  # dash, for busybox's sh prefers its own `ip`.
  rm -f "$root/bin/ip"
  add ip bin/ip && add nft sbin/nft && add dash bin/sh && add kmod sbin/modprobe && add nsenter bin/nsenter && add ipvsadm sbin/ipvsadm
  for backend in nft legacy; do
    add /usr/sbin/xtables-$backend-multi sbin/xtables-$backend-multi
    for family in iptables ip6tables; do
      for verb in '' -save -restore; do ln -sf xtables-$backend-multi "$root/sbin/$family-$backend$verb"; done
    done
  done
  mkdir -p "$root/usr/lib/x86_64-linux-gnu/xtables"
  cp /usr/lib/x86_64-linux-gnu/xtables/*.so "$root/usr/lib/x86_64-linux-gnu/xtables/"
  cat >"$root/init" <<'INIT'
#!/bin/sh
export PATH=/bin:/sbin HOME=/root
mount -t proc p /proc; mount -t sysfs s /sys; mount -t devtmpfs d /dev 2>/dev/null
mount -t cgroup2 c /sys/fs/cgroup; mount -t bpf b /sys/fs/bpf; mount -t tmpfs t /run; mount -t tmpfs t /tmp
ip link set lo up
echo "kernel $(uname -r), up after $(cut -d' ' -f1 /proc/uptime) s"
cd / && sh /test.sh; echo "EXIT $?"
poweroff -f
INIT
  chmod +x "$root/init"
  (cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) >"$root.cpio.gz.new"
  mv "$root.cpio.gz.new" "$root.cpio.gz"
}

# Several kernels may be booted at once, and share the root. It is made anew when this script or a program in it has changed.
exec 9>"$cache/lock"
flock 9
[[ -d $cache/kernel-$version ]] || kernel "$cache/kernel-$version"
key=$({ cat "${BASH_SOURCE[0]}"; dpkg-query -W "${packages[@]}"; } | sha256sum)
root=$cache/root-${key:0:16}
if [[ ! -s $root.cpio.gz ]]; then
  rm -rf "$cache"/root-*
  make_root
fi

work=$(mktemp -d "$cache/run.XXXX")
trap 'rm -rf "$work"' EXIT
(cd "$dir" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/test.cpio.gz"
cat "$root.cpio.gz" "$cache/kernel-$version/modules.cpio.gz" "$work/test.cpio.gz" >"$work/initrd"
exec 9>&- # from here on another checkout may replace the root
# /dev/kvm may open and then hang: the translator is quick enough.
timeout --foreground "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -M q35 -m 2048 -smp 2 -nodefaults -no-user-config \
  -display none -no-reboot -serial stdio -kernel "$cache/kernel-$version"/boot/vmlinuz-* -initrd "$work/initrd" \
  -append "console=ttyS0 quiet panic=-1 tsc=reliable mitigations=off random.trust_cpu=on" </dev/null | sed -u 's|\r||' | tee "$work/log"
exit "$(sed -n 's/^EXIT \([0-9]*\)$/\1/p' "$work/log" | tail -n 1 | grep . || echo 1)"

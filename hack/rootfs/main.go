// Command rootfs makes the image's root file system, all but our own program: iptables with both backends and modprobe, with
// what these need, from Debian's packages. Nothing from the packages is run, so it makes either architecture on any Debian
// machine, without an emulator and without root. The Dockerfile uses it, and so does `make release`.
//
// What goes in, and why:
//   - xtables-nft-multi and xtables-legacy-multi, under the names that say which backend is meant. There is no plain `iptables`:
//     on a node with the other backend it would silently be the wrong one.
//   - All IPv4 and IPv6 extensions, not just those of our own rules: to list a chain, iptables needs the extension of every rule
//     in it, whoever made it. (ebtables' and arptables' are left out.)
//   - modprobe: iptables-legacy runs it when ip_tables or ip6_tables isn't loaded yet. nft needs no help, there the kernel loads
//     its modules itself.
//   - Their libraries and the loader.
//   - Of each package they come from: the licence, and the package's record in the place where scanners look in images without a
//     package manager. The licences that the copyright files refer to, and the release's name for scanners.
//
// Not needed, tried without: /etc/protocols and /etc/services (iptables knows the usual protocols by itself and prints the
// others as numbers), /etc/ethertypes (ebtables only), ld.so.cache (Debian's library paths are compiled into the loader).
package main

import (
	"flag"
	"fmt"
	"os"
	"path"
	"runtime"
)

func main() {
	arch := flag.String("arch", "", "amd64 or arm64; the machine's own if empty")
	out := flag.String("out", "", "directory that becomes the root")
	sources := flag.String("sources", "", "apt sources file to use instead of this machine's mirror of Debian")
	flag.Parse()
	if *out == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	if *arch == "" {
		*arch = runtime.GOARCH
	}
	if err := run(*arch, *out, *sources); err != nil {
		fmt.Fprintln(os.Stderr, "rootfs:", err)
		os.Exit(1)
	}
}

func run(arch, out, sources string) error {
	work, err := os.MkdirTemp("", "rootfs-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	// base-files has the licences and the release's name.
	debs, err := download(work, arch, sources, "iptables", "kmod", "base-files")
	if err != nil {
		return err
	}
	all, err := unpack(debs)
	if err != nil {
		return err
	}
	root := newRoot(all)
	programs := []string{"/usr/sbin/xtables-nft-multi", "/usr/sbin/xtables-legacy-multi", "/usr/bin/kmod"}
	for _, kind := range []string{"xt", "ipt", "ip6t"} {
		extensions := all.glob("/usr/lib/*/xtables/lib" + kind + "_*.so")
		if len(extensions) == 0 {
			return fmt.Errorf("the package iptables has no extensions lib%s_*.so where they used to be", kind)
		}
		programs = append(programs, extensions...)
	}
	if err := root.addPrograms(programs); err != nil {
		return err
	}
	for _, backend := range []string{"nft", "legacy"} {
		for _, family := range []string{"iptables", "ip6tables"} {
			for _, verb := range []string{"", "-restore", "-save"} {
				root.link("/usr/sbin/"+family+"-"+backend+verb, "xtables-"+backend+"-multi")
			}
		}
	}
	root.link("/usr/sbin/modprobe", "../bin/kmod")
	for _, name := range []string{"/etc/os-release", "/etc/debian_version"} {
		if err := root.add(name); err != nil {
			return err
		}
	}
	for _, name := range all.glob("/usr/share/common-licenses/*") {
		root.files[name] = all.files[name] // some are links to others
	}
	if err := root.addRecords(); err != nil {
		return err
	}
	for _, dir := range usrmerged {
		root.link("/"+dir, path.Join("usr", dir))
	}
	root.link("/var/run", "/run")
	root.directories = append(root.directories, "/run", "/usr/lib64")
	return root.write(out)
}

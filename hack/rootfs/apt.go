package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// suite is the Debian release that the image is made of, whatever this machine runs.
const suite = "bookworm"

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// download fetches the newest versions of the packages and of all that they depend on, and returns the .deb files. It is apt
// that does it, and that checks the signatures; it has lists and a status of its own, and changes nothing on the machine.
func download(work, arch, sources string, packages ...string) ([]string, error) {
	for _, dir := range []string{"etc", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(work, dir), 0o755); err != nil {
			return nil, err
		}
	}
	list, err := sourcesList(sources)
	if err != nil {
		return nil, err
	}
	access, err := output("apt-config", "dump", "Acquire")
	if err != nil {
		return nil, err
	}
	config := []string{
		fmt.Sprintf("Dir::Etc %q;", filepath.Join(work, "etc")),
		fmt.Sprintf("Dir::State %q;", filepath.Join(work, "state")),
		fmt.Sprintf("Dir::State::status %q;", filepath.Join(work, "state/status")),
		fmt.Sprintf("Dir::Cache %q;", filepath.Join(work, "cache")),
		fmt.Sprintf("APT::Architecture %q;", arch),
		fmt.Sprintf("APT::Architectures { %q; };", arch),
		`APT::Sandbox::User "root";`, // _apt can't write to a temporary directory of ours
	}
	// How this machine reaches its mirror, such as by a proxy.
	for line := range strings.Lines(access) {
		if !strings.HasPrefix(line, "Acquire::IndexTargets") {
			config = append(config, strings.TrimSpace(line))
		}
	}
	config = append(config, `Acquire::Languages "none";`)
	aptConfig := filepath.Join(work, "apt.conf")
	for name, content := range map[string]string{
		aptConfig:                               strings.Join(config, "\n") + "\n",
		filepath.Join(work, "etc/sources.list"): list,
		filepath.Join(work, "state/status"):     "",
	} {
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			return nil, err
		}
	}
	for _, args := range [][]string{
		{"update", "-qq", "--error-on=any"},
		append([]string{"install", "-qq", "--yes", "--download-only", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.Command("apt-get", args...)
		cmd.Env = append(os.Environ(), "APT_CONFIG="+aptConfig)
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("apt-get %s: %w: %s", args[0], err, bytes.TrimSpace(out))
		}
	}
	debs, err := filepath.Glob(filepath.Join(work, "cache/archives/*.deb"))
	if err == nil && len(debs) == 0 {
		err = errors.New("apt-get downloaded nothing")
	}
	return debs, err
}

// sourcesList is the given file, or Debian's suite from where this machine takes its own Debian packages.
func sourcesList(file string) (string, error) {
	if file != "" {
		list, err := os.ReadFile(file)
		return string(list), err
	}
	codename, err := debianRelease()
	if err != nil {
		return "", err
	}
	// What apt would fetch, as 'MIRROR/dists/SUITE/InRelease' and more.
	uris, err := output("apt-get", "update", "--print-uris")
	if err != nil {
		return "", err
	}
	return debianSources(uris, codename)
}

// debianSources is Debian's suite from the mirrors among what apt would fetch here, where the release is codename. A third party's
// source may have suites of the same names, but hardly a suite of updates: that is how Debian's own is told.
func debianSources(uris, codename string) (string, error) {
	mirrors := map[string][]string{}
	for line := range strings.Lines(uris) {
		quoted, _, _ := strings.Cut(line, " ")
		uri, isRelease := strings.CutSuffix(strings.Trim(quoted, "'"), "/InRelease")
		if mirror, release, ok := strings.Cut(uri, "/dists/"); ok && isRelease && !slices.Contains(mirrors[release], mirror) {
			mirrors[release] = append(mirrors[release], mirror)
		}
	}
	if ours := slices.DeleteFunc(slices.Clone(mirrors[codename]), func(mirror string) bool {
		return !slices.Contains(mirrors[codename+"-updates"], mirror)
	}); len(ours) > 0 {
		mirrors[codename] = ours
	}
	var list strings.Builder
	for _, source := range []struct{ here, there string }{
		{codename, suite}, {codename, suite + "-updates"}, {codename + "-security", suite + "-security"},
	} {
		found := mirrors[source.here]
		switch {
		case len(found) == 0:
			return "", fmt.Errorf("apt has no source for %s on this machine, so where Debian's packages are is not known: "+
				"add it, or name a file of sources for %s with --sources (SOURCES of `make release`)", source.here, suite)
		case len(found) > 1:
			return "", fmt.Errorf("apt has several sources for %s on this machine (%s), so which is Debian's is not known: "+
				"leave one, or name a file of sources for %s with --sources (SOURCES of `make release`)", source.here, strings.Join(found, ", "), suite)
		}
		fmt.Fprintf(&list, "deb [signed-by=%s] %s %s main\n", keyring, found[0], source.there)
	}
	return list.String(), nil
}

// debianRelease is the code name of this machine's Debian.
func debianRelease() (string, error) {
	file, err := os.Open("/etc/os-release")
	if err != nil {
		return "", err
	}
	defer file.Close()
	fields := map[string]string{}
	for scanner := bufio.NewScanner(file); scanner.Scan(); {
		if name, value, ok := strings.Cut(scanner.Text(), "="); ok {
			fields[name] = strings.Trim(value, `"`)
		}
	}
	if fields["ID"] != "debian" || fields["VERSION_CODENAME"] == "" {
		return "", fmt.Errorf("this machine is no Debian release (/etc/os-release): name a file of apt sources for %s with --sources "+
			"(SOURCES of `make release`)", suite)
	}
	return fields["VERSION_CODENAME"], nil
}

func output(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), err
}

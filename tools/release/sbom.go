// SBOMs, in CycloneDX: of each program, what Go wrote into it; of the image, Debian's packages as well.
package main

import (
	"bytes"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

func (r *release) makeProgramSBOM(name, binary string) error {
	modules, err := goModules(binary)
	if err != nil {
		return err
	}
	program := strings.TrimSuffix(filepath.Base(binary), ".exe")
	return r.writeSBOM(name, cdx.Component{
		Type: cdx.ComponentTypeApplication, Name: program, Version: r.version,
		PackageURL: "pkg:golang/github.com/imds-guard/imds-guard@" + r.version + "#cmd/" + program,
	}, modules)
}

// makeImageSBOM describes the image of one platform, of which root is the file system.
func (r *release) makeImageSBOM(name string, image *builtImage) error {
	modules, err := goModules(r.binary(agent, image.platform))
	if err != nil {
		return err
	}
	components := []cdx.Component{{
		Type: cdx.ComponentTypeOS, Name: "debian", Version: image.debian,
	}}
	for _, p := range image.packages {
		components = append(components, p.component(image.debian))
	}
	return r.writeSBOM(name, cdx.Component{
		Type: cdx.ComponentTypeContainer, Name: r.image, Version: r.version,
		PackageURL: fmt.Sprintf("pkg:oci/%s@%s?repository_url=%s&arch=%s", filepath.Base(r.image), url.QueryEscape(image.digest),
			url.QueryEscape(r.image), image.platform.arch),
	}, append(components, modules...))
}

func (r *release) writeSBOM(name string, about cdx.Component, components []cdx.Component) error {
	about.BOMRef = about.PackageURL
	for i := range components {
		components[i].BOMRef = components[i].PackageURL
	}
	bom := cdx.NewBOM()
	bom.Metadata = &cdx.Metadata{Timestamp: r.time.Format(time.RFC3339), Component: &about}
	bom.Components = &components
	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(bom); err != nil {
		return err
	}
	return r.write(name+".cdx.json", out.Bytes())
}

// goModules are the modules that a program was built of, and Go itself.
func goModules(binary string) ([]cdx.Component, error) {
	info, err := buildinfo.ReadFile(binary)
	if err != nil {
		return nil, err
	}
	components := []cdx.Component{goModule("std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			dep = dep.Replace
		}
		component := goModule(dep.Path, dep.Version)
		// go.sum's form of a SHA-256 over the module's files.
		if sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(dep.Sum, "h1:")); err == nil && len(sum) > 0 {
			component.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: hex.EncodeToString(sum)}}
		}
		components = append(components, component)
	}
	return components, nil
}

func goModule(path, version string) cdx.Component {
	return cdx.Component{
		Type: cdx.ComponentTypeLibrary, Name: path, Version: version, Scope: cdx.ScopeRequired,
		PackageURL: "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B"),
	}
}

// debianPackage is one that files in the image are from.
type debianPackage struct {
	name, version, arch, source, sha256 string
}

func (p debianPackage) purl(release string) string {
	purl := fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=debian-%s", strings.ReplaceAll(p.name, "+", "%2B"),
		url.QueryEscape(p.version), p.arch, release)
	if p.source != "" {
		purl += "&upstream=" + url.QueryEscape(p.source)
	}
	return purl
}

func (p debianPackage) component(release string) cdx.Component {
	return cdx.Component{
		Type: cdx.ComponentTypeLibrary, Name: p.name, Version: p.version, PackageURL: p.purl(release),
		Hashes: &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: p.sha256}},
	}
}

// debianPackages reads what hack/rootfs says about where the files of a root are from, and the release of Debian.
func debianPackages(root string) (packages []debianPackage, release string, err error) {
	records, err := filepath.Glob(filepath.Join(root, "var/lib/dpkg/status.d/*"))
	if err != nil {
		return nil, "", err
	}
	for _, file := range records {
		fields, err := readFields(file, ": ")
		if err != nil {
			return nil, "", err
		}
		p := debianPackage{fields["Package"], fields["Version"], fields["Architecture"], fields["Source"], fields["SHA256"]}
		if p.name == "" || p.version == "" || p.arch == "" || p.sha256 == "" {
			return nil, "", fmt.Errorf("%s lacks a field: %+v", file, p)
		}
		packages = append(packages, p)
	}
	fields, err := readFields(filepath.Join(root, "etc/os-release"), "=")
	return packages, strings.Trim(fields["VERSION_ID"], `"`), err
}

// readFields reads a file of lines with a name and a value, and leaves out those that go on with a field.
func readFields(file, separator string) (map[string]string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	fields := map[string]string{}
	for line := range strings.Lines(string(content)) {
		if name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), separator); ok && !strings.HasPrefix(line, " ") {
			fields[name] = value
		}
	}
	return fields, nil
}

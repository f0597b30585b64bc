// The image: for each platform the Dockerfile's last stage, made of the programs that are released and of Debian's packages, and
// both under one index, as an OCI archive.
package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// builtImage is the image of one platform.
type builtImage struct {
	v1.Image
	platform platform
	digest   string
	debian   string // the release
	packages []debianPackage
}

// makeImage writes the archive and the SBOMs, and returns the digest by which nodes pull the image.
func (r *release) makeImage() (digest string, err error) {
	recipe, err := readRecipe(filepath.Join(r.source, "Dockerfile"), map[string]string{"VERSION": r.version, "COMMIT": r.commit[:12]})
	if err != nil {
		return "", err
	}
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	for _, p := range nodes {
		image, err := r.buildImage(recipe, p)
		if err != nil {
			return "", err
		}
		if err := r.makeImageSBOM(fmt.Sprintf("%s_%s_image_%s", agent, r.version, p), image); err != nil {
			return "", err
		}
		for _, p := range image.packages {
			r.debs = append(r.debs, resource{URI: p.purl(image.debian), Digest: map[string]string{"sha256": p.sha256}})
		}
		index = mutate.AppendManifests(index, mutate.IndexAddendum{
			Add: image.Image, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: p.os, Architecture: p.arch}},
		})
	}
	hash, err := index.Digest()
	if err != nil {
		return "", err
	}
	return hash.String(), r.writeImage(index)
}

// stages has a directory for each stage of the Dockerfile that the last one copies from, with what that stage makes.
func (r *release) stages(p platform) string { return filepath.Join(r.work, "stages-"+p.arch) }

func (r *release) root(p platform) string { return filepath.Join(r.stages(p), "iptables/rootfs") }

// makeRoot makes what the Dockerfile's stage iptables makes.
func (r *release) makeRoot(p platform) error {
	_, err := command(r.source, nil, "go", "run", "./hack/rootfs", "--arch", p.arch, "--out", r.root(p), "--sources", r.sources)
	return err
}

func (r *release) buildImage(recipe *recipe, p platform) (*builtImage, error) {
	stages := r.stages(p)
	built := filepath.Join(stages, "build/out")
	if err := os.MkdirAll(built, 0o755); err != nil {
		return nil, err
	}
	if err := os.Link(r.binary(agent, p), filepath.Join(built, agent)); err != nil {
		return nil, err
	}
	created := v1.Time{Time: r.time}
	image, err := mutate.ConfigFile(
		mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		&v1.ConfigFile{OS: p.os, Architecture: p.arch, Created: created, Config: recipe.config, RootFS: v1.RootFS{Type: "layers"}})
	if err != nil {
		return nil, err
	}
	for _, copied := range recipe.copies {
		from := r.source
		if copied.From != "" {
			from = filepath.Join(stages, copied.From)
		}
		content, err := tarGz(func(archive *tar.Writer) error {
			return r.addCopied(archive, from, copied.SourcePaths, copied.DestPath)
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", copied, err)
		}
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
			tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, err
		}
		image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: v1.History{Created: created, CreatedBy: copied.String()}})
		if err != nil {
			return nil, err
		}
	}
	result := &builtImage{Image: image, platform: p}
	digest, err := image.Digest()
	if err != nil {
		return nil, err
	}
	result.digest = digest.String()
	result.packages, result.debian, err = debianPackages(r.root(p))
	return result, err
}

// addCopied adds what COPY copies: what is in a directory, or files.
func (r *release) addCopied(archive *tar.Writer, from string, sources []string, dest string) error {
	under := strings.TrimLeft(path.Dir(dest+"x")+"/", "/") // dest itself, if it ends in a slash
	for parent := range parents(under) {
		header := &tar.Header{Typeflag: tar.TypeDir, Name: parent, Mode: 0o755, ModTime: r.time, Format: tar.FormatPAX}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
	}
	for _, source := range sources {
		file := filepath.Join(from, source)
		info, err := os.Stat(file)
		switch {
		case err != nil:
		case info.IsDir():
			err = addTree(archive, file, under, r.time)
		case strings.HasSuffix(dest, "/"):
			err = addFile(archive, file, under+filepath.Base(file), r.time)
		default:
			err = addFile(archive, file, strings.TrimPrefix(dest, "/"), r.time)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// parents yields usr/, usr/local/ and usr/local/bin/ of usr/local/bin/.
func parents(dir string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for i, c := range dir {
			if c == '/' && !yield(dir[:i+1]) {
				return
			}
		}
	}
}

func (r *release) writeImage(index v1.ImageIndex) error {
	dir := filepath.Join(r.work, "oci")
	image, err := layout.Write(dir, empty.Index)
	if err != nil {
		return err
	}
	// By the first, skopeo and containerd find the image in the archive; by the second, containerd and nerdctl name it.
	annotations := map[string]string{
		"org.opencontainers.image.ref.name": r.version,
		"io.containerd.image.name":          r.image + ":" + r.version,
	}
	if err := image.AppendIndex(index, layout.WithAnnotations(annotations)); err != nil {
		return err
	}
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	if err := addTree(archive, dir, "", r.time); err != nil {
		return err
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return r.write(fmt.Sprintf("%s_%s_image.tar", agent, r.version), out.Bytes())
}

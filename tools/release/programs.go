package main

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "_" + p.arch }

func (p platform) suffix() string {
	if p.os == "windows" {
		return ".exe"
	}
	return ""
}

// nodes are the platforms of the agent, and of the image. The plugin's are given.
var nodes = []platform{{"linux", "amd64"}, {"linux", "arm64"}}

// readPlatforms reads linux/amd64 and the like.
func (r *release) readPlatforms() error {
	compiled, err := command("", nil, "go", "tool", "dist", "list")
	if err != nil {
		return err
	}
	known := strings.Fields(compiled)
	var problems []error
	for field := range strings.FieldsSeq(r.plugins) {
		os, arch, _ := strings.Cut(field, "/")
		p := platform{os, arch}
		switch {
		case !slices.Contains(known, field):
			problems = append(problems, fmt.Errorf("PLUGINS has %s, which is not a platform such as linux/amd64 "+
				"(`go tool dist list` prints all)", field))
		case slices.Contains(r.platforms, p):
			problems = append(problems, fmt.Errorf("PLUGINS has %s twice: leave one", field))
		default:
			r.platforms = append(r.platforms, p)
		}
	}
	if len(problems) == 0 && len(r.platforms) == 0 {
		return errors.New("PLUGINS is empty: give platforms such as linux/amd64, or leave it out for the usual ones")
	}
	return errors.Join(problems...)
}

const (
	agent  = "imds-guard"
	plugin = "kubectl-imds_guard"
)

// legal goes with the programs wherever they go.
var legal = []string{"LICENSE", "THIRD_PARTY_NOTICES"}

func (r *release) makePrograms() error {
	for _, p := range nodes {
		if _, _, err := r.makeProgram(agent, p); err != nil {
			return err
		}
	}
	krew := krewManifest(r.version)
	for _, p := range r.platforms {
		archive, sum, err := r.makeProgram(plugin, p)
		if err != nil {
			return err
		}
		krew.add(p, r.url+"/"+archive, sum)
	}
	manifest, err := yaml.Marshal(krew)
	if err != nil {
		return err
	}
	return r.write("krew.yaml", manifest)
}

// binary is where the program of a platform is after it was compiled.
func (r *release) binary(program string, p platform) string {
	return filepath.Join(r.work, p.String(), program+p.suffix())
}

// makeProgram compiles a program and makes its archive and its SBOM.
func (r *release) makeProgram(program string, p platform) (archive, sum string, err error) {
	binary := r.binary(program, p)
	_, err = command(r.source, []string{"GOOS=" + p.os, "GOARCH=" + p.arch, "VERSION=" + r.version, "COMMIT=" + r.commit[:12]},
		"hack/build", filepath.Dir(binary), "./cmd/"+program)
	if err != nil {
		return "", "", err
	}
	name := fmt.Sprintf("%s_%s_%s", program, r.version, p)
	files := []string{binary}
	for _, file := range legal {
		files = append(files, filepath.Join(r.source, file))
	}
	format, pack := ".tar.gz", tarGzOf
	if p.os == "windows" {
		format, pack = ".zip", zipOf
	}
	content, err := pack(files, r.time)
	if err != nil {
		return "", "", err
	}
	archive = name + format
	sum = fmt.Sprintf("%x", sha256.Sum256(content))
	return archive, sum, cmp.Or(r.write(archive, content), r.makeProgramSBOM(name, binary))
}

func (r *release) write(name string, content []byte) error {
	return os.WriteFile(filepath.Join(r.out, name), content, 0o644)
}

// krew is the manifest of a plugin for `kubectl krew install`: https://krew.sigs.k8s.io/docs/developer-guide/plugin-manifest/
type krew struct {
	APIVersion string            `json:"apiVersion"`
	Kind       string            `json:"kind"`
	Metadata   map[string]string `json:"metadata"`
	Spec       krewSpec          `json:"spec"`
}

type krewSpec struct {
	Version          string         `json:"version"`
	Homepage         string         `json:"homepage"`
	ShortDescription string         `json:"shortDescription"`
	Description      string         `json:"description"`
	Platforms        []krewPlatform `json:"platforms"`
}

type krewPlatform struct {
	Selector struct {
		MatchLabels map[string]string `json:"matchLabels"`
	} `json:"selector"`
	URI    string `json:"uri"`
	SHA256 string `json:"sha256"`
	Bin    string `json:"bin"`
}

func krewManifest(version string) krew {
	return krew{
		APIVersion: "krew.googlecontainertools.github.com/v1alpha2", Kind: "Plugin",
		Metadata: map[string]string{"name": "imds-guard"},
		Spec: krewSpec{
			Version:          version,
			Homepage:         home,
			ShortDescription: "Show which pods ask for EC2 instance metadata",
			Description: "Asks the imds-guard agents of all nodes which pods ask the EC2 instance metadata service,\n" +
				"what for and what to do about each, and which nodes are protected.\n",
		},
	}
}

func (k *krew) add(p platform, uri, sum string) {
	kp := krewPlatform{URI: uri, SHA256: sum, Bin: plugin + p.suffix()}
	kp.Selector.MatchLabels = map[string]string{"os": p.os, "arch": p.arch}
	k.Spec.Platforms = append(k.Spec.Platforms, kp)
}

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/mod/semver"
)

// input is what the releaser decides.
type input struct {
	version, image, url string
	plugins             string // platforms
	sources             string // apt's, a file; none: this machine's
}

// check names each variable of `make release` that is wrong, and what to give.
func (in input) check() error {
	var problems []error
	switch {
	case in.version == "":
		problems = append(problems, errors.New("VERSION is missing: give a semantic version, such as VERSION=v1.2.3"))
	// Canonical: all three numbers, and no build metadata, which a tag of an image can't have.
	case !semver.IsValid(in.version) || semver.Canonical(in.version) != in.version:
		problems = append(problems, fmt.Errorf("VERSION=%s is not a semantic version such as v1.2.3 or v1.2.3-rc.1 (no build metadata)", in.version))
	}
	if in.image == "" {
		problems = append(problems, errors.New("IMAGE is missing: give the repository that nodes will pull the image from, "+
			"such as IMAGE=registry.example.com/imds-guard"))
	} else if _, err := name.NewRepository(in.image); err != nil {
		problems = append(problems, fmt.Errorf("IMAGE=%s is not a repository without a tag, such as "+
			"registry.example.com/imds-guard (the tag is VERSION): %w", in.image, err))
	} else if _, err := name.NewRepository(in.image, name.StrictValidation); err != nil {
		problems = append(problems, fmt.Errorf("IMAGE=%s lacks the registry or the path in it, and nodes would ask Docker Hub: "+
			"give both, such as registry.example.com/imds-guard (Docker Hub is docker.io/OWNER/imds-guard)", in.image))
	}
	if !strings.HasPrefix(in.url, "https://") {
		problems = append(problems, fmt.Errorf("URL=%s is not where the archives will be downloaded from: give an https:// address, "+
			"to which the file name is added", in.url))
	}
	return errors.Join(problems...)
}

// readSources reads the apt sources that are given.
func (r *release) readSources() error {
	if r.sources == "" {
		return nil
	}
	text, err := os.ReadFile(r.sources)
	if err == nil && len(bytes.TrimSpace(text)) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return fmt.Errorf("SOURCES=%s can't be read: give a file of apt sources, or leave it out: %w", r.sources, err)
	}
	r.apt = string(text)
	return nil
}

// readCommit reads what is released, and refuses a work tree that is something else.
func (r *release) readCommit() error {
	changes, err := r.git("status", "--porcelain", "--untracked-files=normal")
	if err != nil {
		return err
	}
	if changes != "" {
		first, rest, _ := strings.Cut(changes, "\n")
		more := ""
		if rest != "" {
			more = fmt.Sprintf(" and %d more", strings.Count(rest, "\n")+1)
		}
		return fmt.Errorf("the work tree has changes (%s%s), and a release is made of a commit: commit or stash them", strings.TrimSpace(first), more)
	}
	if r.commit, err = r.git("rev-parse", "HEAD"); err != nil {
		return err
	}
	if tagged, err := r.git("rev-parse", "--quiet", "--verify", "refs/tags/"+r.version+"^{commit}"); err == nil && tagged != r.commit {
		return fmt.Errorf("VERSION=%s is tagged already, at another commit, %.12s: check that out, or choose another version", r.version, tagged)
	}
	date, err := r.git("show", "--no-patch", "--format=%cI", "HEAD")
	if err != nil {
		return err
	}
	r.time, err = time.Parse(time.RFC3339, date)
	r.time = r.time.UTC()
	return err
}

// export writes the commit's files to where all is made of them. In the work tree there may be others that git says nothing of, such
// as an editor's copies that it ignores; and Helm would pack them.
func (r *release) export() error {
	archive := filepath.Join(r.work, "source.tar")
	// As they are in the commit, whatever the end of a line is here.
	if _, err := r.git("-c", "core.autocrlf=false", "-c", "core.eol=lf", "archive", "--format=tar", "--output", archive, r.commit); err != nil {
		return err
	}
	r.source = filepath.Join(r.work, "source")
	if err := os.Mkdir(r.source, 0o755); err != nil {
		return err
	}
	_, err := command(r.source, nil, "tar", "-xf", archive)
	return err
}

func (r *release) git(args ...string) (string, error) {
	return command(r.repository, nil, "git", args...)
}

// command runs a program, and returns its output without the last newline.
func command(dir string, env []string, program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

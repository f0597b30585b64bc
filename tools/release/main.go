// Command release makes everything that a release publishes, in one directory, and the same bytes each time. `make release` runs
// it; docs/releasing.md says what it makes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// release is one release, and where it is made of what.
type release struct {
	input
	repository string     // the work tree
	source     string     // the commit's files: all is made of these
	out        string     // where everything goes
	work       string     // what only this program needs
	helm       string     // the program
	platforms  []platform // of the kubectl plugin
	apt        string     // text of the apt sources, if not this machine's
	commit     string     // in full
	time       time.Time  // the commit's: all that is made is that old
	debs       []resource // of which the images were made
}

func main() {
	var r release
	flag.StringVar(&r.version, "version", "", "")
	flag.StringVar(&r.image, "image", "", "repository of the image, without a tag")
	flag.StringVar(&r.url, "url", "", "where the archives can be downloaded from, for krew")
	flag.StringVar(&r.repository, "repository", "", "work tree of imds-guard")
	flag.StringVar(&r.helm, "helm", "", "helm's path")
	flag.StringVar(&r.sources, "sources", "", "apt sources file for Debian's packages, instead of this machine's mirror")
	flag.StringVar(&r.out, "out", "", "directory to make; what is in it is lost")
	flag.StringVar(&r.plugins, "plugins", "", "platforms of the kubectl plugin")
	flag.Parse()
	if err := r.run(); err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprint(os.Stderr, "release: ", strings.TrimSuffix(line, "\n"), "\n")
		}
		os.Exit(1)
	}
}

func (r *release) run() error {
	// Nothing is made, and nothing of an earlier release is lost, before all of this is known to be right.
	err := errors.Join(r.input.check(), r.readPlatforms(), r.readSources(), r.readCommit())
	if err != nil {
		return err
	}
	if r.work, err = os.MkdirTemp("", "release-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.work)
	if err := r.export(); err != nil {
		return err
	}
	// Half a release must not look like one.
	final := r.out
	r.out += ".new"
	if err := errors.Join(os.RemoveAll(r.out), os.MkdirAll(r.out, 0o755)); err != nil {
		return err
	}
	if err := r.make(); err != nil {
		return err
	}
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(r.out, final)
}

func (r *release) make() error {
	say := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, time.Now().Format(time.TimeOnly)+" "+format+"\n", args...)
	}
	say("compiling the programs, and fetching Debian's packages for the image")
	var roots errgroup.Group
	for _, p := range nodes {
		roots.Go(func() error { return r.makeRoot(p) })
	}
	if err := errors.Join(r.makePrograms(), roots.Wait()); err != nil {
		return err
	}
	say("making the image")
	image, err := r.makeImage()
	if err != nil {
		return err
	}
	say("making the chart and the manifests, for %s", image)
	if err := r.makeManifests(image); err != nil {
		return err
	}
	if err := r.makeProvenance(); err != nil {
		return err
	}
	return r.makeChecksums()
}

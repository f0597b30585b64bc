// Command licenses checks that the licence of every module that our programs and tests are built of is one that we allow, and
// keeps THIRD_PARTY_NOTICES: the licence texts of what is in the released programs, which must go with them.
//
//	licenses [--write] REPOSITORY
//
// Without --write, a THIRD_PARTY_NOTICES that is out of date is an error.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// allowed are SPDX names. MPL-2.0 and the like are not needed so far; to allow one is a decision, not a formality.
var allowed = map[string]bool{"Apache-2.0": true, "MIT": true, "BSD-2-Clause": true, "BSD-3-Clause": true, "ISC": true}

const notices = "THIRD_PARTY_NOTICES"

func main() {
	write := flag.Bool("write", false, "write "+notices)
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "usage: licenses [--write] REPOSITORY")
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *write); err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprint(os.Stderr, "licenses: ", strings.TrimSuffix(line, "\n"), "\n")
		}
		os.Exit(1)
	}
}

func run(repository string, write bool) error {
	// The tests that have a tag, too: they are judged, but not released.
	all, err := texts(repository, []string{"linux"}, "-test", "-tags=e2e,figures,kernels", "./...")
	if err != nil {
		return err
	}
	// The plugin's platforms differ in what they need.
	released, err := texts(repository, []string{"linux", "darwin", "windows"}, "./cmd/...")
	if err != nil {
		return err
	}
	if err := check(append(all, released...)); err != nil {
		return err
	}
	want := format(released)
	file := filepath.Join(repository, notices)
	if write {
		return os.WriteFile(file, want, 0o644)
	}
	if have, err := os.ReadFile(file); err != nil || !bytes.Equal(have, want) {
		return fmt.Errorf("%s is out of date: run `make notices`, and commit it", notices)
	}
	return nil
}

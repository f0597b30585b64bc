package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

const (
	checksums = "SHA256SUMS"
	home      = "https://github.com/imds-guard/imds-guard"
	document  = home + "/blob/main/docs/releasing.md"
)

// An in-toto statement with SLSA's provenance: https://slsa.dev/spec/v1.0/provenance. It has no time of building: it must be the same
// bytes each time, like everything else.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     provenance `json:"predicate"`
}

type provenance struct {
	BuildDefinition struct {
		BuildType            string            `json:"buildType"`
		ExternalParameters   map[string]string `json:"externalParameters"`
		InternalParameters   map[string]string `json:"internalParameters"`
		ResolvedDependencies []resource        `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID string `json:"id"`
		} `json:"builder"`
	} `json:"runDetails"`
}

type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

// makeProvenance tells what the files that are there so far were made of. Go modules are in the SBOMs and go.sum.
func (r *release) makeProvenance() error {
	s := statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	err := r.eachFile(func(name, sum string) {
		s.Subject = append(s.Subject, resource{Name: name, Digest: map[string]string{"sha256": sum}})
	})
	if err != nil {
		return err
	}
	b := &s.Predicate.BuildDefinition
	b.BuildType = document
	b.ExternalParameters = map[string]string{
		"VERSION": r.version, "IMAGE": r.image, "URL": r.url, "PLUGINS": strings.Join(strings.Fields(r.plugins), " "),
	}
	if r.apt != "" {
		// The file's name would be the builder's own business; to compare it, its text is what counts.
		b.ExternalParameters["SOURCES"] = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(r.apt)))
	}
	b.InternalParameters = map[string]string{"go": runtime.Version()}
	b.ResolvedDependencies = append([]resource{
		{URI: "git+" + home + "@" + r.version, Digest: map[string]string{"gitCommit": r.commit}},
	}, r.debs...)
	s.Predicate.RunDetails.Builder.ID = document // whoever follows it, since nobody signs
	content, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return r.write("provenance.intoto.json", append(content, '\n'))
}

func (r *release) makeChecksums() error {
	var sums bytes.Buffer
	if err := r.eachFile(func(name, sum string) { fmt.Fprintf(&sums, "%s  %s\n", sum, name) }); err != nil {
		return err
	}
	return r.write(checksums, sums.Bytes())
}

// eachFile is told the SHA-256 of each file that is there so far, in order.
func (r *release) eachFile(tell func(name, sum string)) error {
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		content, err := os.ReadFile(filepath.Join(r.out, entry.Name()))
		if err != nil {
			return err
		}
		tell(entry.Name(), fmt.Sprintf("%x", sha256.Sum256(content)))
	}
	return nil
}

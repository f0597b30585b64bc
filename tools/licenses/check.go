package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/google/licenseclassifier/v2/assets"
)

// check tells of every text that is no licence that we allow.
func check(all []text) error {
	classifier, err := assets.DefaultClassifier()
	if err != nil {
		return err
	}
	// Most modules have the same few texts.
	names := map[string][]string{}
	problems := map[string]error{}
	for _, t := range all {
		if t.notice {
			continue
		}
		if _, known := names[t.content]; !known {
			names[t.content] = []string{}
			for _, match := range classifier.Match([]byte(t.content)).Matches {
				if match.MatchType == "License" {
					names[t.content] = append(names[t.content], match.Name)
				}
			}
		}
		if len(names[t.content]) == 0 {
			problems[t.String()] = fmt.Errorf("%s is no licence that we know", t)
		}
		for _, name := range names[t.content] {
			if !allowed[name] {
				problems[t.String()] = fmt.Errorf("%s is %s, and allowed are %s: use another module",
					t, name, strings.Join(slices.Sorted(maps.Keys(allowed)), ", "))
			}
		}
	}
	var sorted []error
	for _, name := range slices.Sorted(maps.Keys(problems)) {
		sorted = append(sorted, problems[name])
	}
	return errors.Join(sorted...)
}

// format is the file: each text once, under all modules that have it.
func format(all []text) []byte {
	var order []string
	modules := map[string][]string{}
	for _, t := range all {
		if modules[t.content] == nil {
			order = append(order, t.content)
		}
		modules[t.content] = append(modules[t.content], t.String())
	}
	var out strings.Builder
	out.WriteString("imds-guard and kubectl-imds_guard contain the following software. Written by `make notices`.\n")
	for _, content := range order {
		fmt.Fprintf(&out, "\n%s\n\n", strings.Repeat("=", 80))
		for _, module := range modules[content] {
			fmt.Fprintln(&out, module)
		}
		fmt.Fprintf(&out, "\n%s\n", strings.Trim(content, "\n"))
	}
	return []byte(out.String())
}

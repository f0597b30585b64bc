package main

import (
	"os"
	"strings"
	"testing"
)

const chart = "../chart/imds-guard"

func TestREADMEHasTheValues(t *testing.T) {
	want, err := update(chart)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(chart + "/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Error("the table in the chart's README.md is not what values.yaml says: run `make manifests`")
	}
}

func TestTable(t *testing.T) {
	got, err := table([]byte(`# Not said of a value.

# Nor this.
a:
  # -- One
  # and more: x|y.
  b: "1"
  c:
    # -- Two.
    d: {}
# About the list.
# -- Three.
e:
  - f
# -- Four.
g:
  h: 2
`))
	const want = "| value | default | meaning |\n|---|---|---|\n| `a.b` | `\"1\"` | One and more: x\\|y. |\n| `a.c.d` | `{}` | Two. |\n" +
		"| `e` | `[\"f\"]` | Three. |\n| `g` | `{\"h\":2}` | Four. |\n"
	if err != nil || got != want {
		t.Errorf("got %v\n%s\nwant\n%s", err, got, want)
	}
	if _, err := table([]byte("a:\n  b: 1\n  # not for the table\n  c: 2\n")); err == nil ||
		!strings.Contains(err.Error(), "a.b: say what") || !strings.Contains(err.Error(), "a.c: say what") {
		t.Errorf("values without a comment: %v", err)
	}
}

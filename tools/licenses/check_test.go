package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/licenseclassifier/v2/assets"
)

func TestCheck(t *testing.T) {
	known := func(name string) string {
		content, err := assets.ReadLicenseFile("License/" + name + "/license.txt")
		if err != nil {
			t.Fatal(err)
		}
		return string(content)
	}
	ours, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text text
		want string // in the error; empty if there is none
	}{
		"allowed":     {text{content: string(ours)}, ""},
		"GPL":         {text{content: known("GPL-3.0")}, "example.com/m@v1.0.0/LICENSE is GPL-3.0, and allowed are"},
		"one of two":  {text{content: string(ours) + "\n\n" + known("GPL-2.0")}, "example.com/m@v1.0.0/LICENSE is GPL-2.0, and allowed are"},
		"unknown":     {text{content: "You may look at this, on Sundays.\n"}, "example.com/m@v1.0.0/LICENSE is no licence that we know"},
		"only a note": {text{content: "Written by somebody.\n", notice: true}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			test.text.module, test.text.version, test.text.path = "example.com/m", "v1.0.0", "LICENSE"
			// Beside one that is allowed: that must not hide it.
			err := check([]text{{module: "example.com/other", path: "LICENSE", content: string(ours)}, test.text})
			if test.want == "" && err != nil {
				t.Error(err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

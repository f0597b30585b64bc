package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestReadRecipe(t *testing.T) {
	for _, test := range []struct {
		lines string
		want  string // in the error; empty if there is none
	}{
		{"COPY --from=build /out/x /usr/bin/x\nENTRYPOINT [\"/usr/bin/x\", \"run\"]\nCMD [\"--fast\"]", ""},
		{"COPY --chmod=755 x /x", "COPY --chmod=755 x /x"},
		{"COPY --chown=1:1 x /x", "COPY --chown=1:1 x /x"},
		{"COPY --exclude=*.md x /x", "COPY --exclude=*.md x /x"},
		{"COPY --parents x/y /x/", "COPY --parents x/y /x/"},
		{"COPY --link x /x", "COPY --link x /x"},
		{"COPY <<end /x\ntext\nend", "COPY <<end /x"},
		{"ENTRYPOINT /usr/bin/x run", "ENTRYPOINT /usr/bin/x run"},
		{"CMD run --fast", "CMD run --fast"},
		{"USER 1", "USER"},
		{"ARG OTHER", "ARG OTHER"},
		{"LABEL a=$OTHER", "no ARG OTHER"},
	} {
		t.Run(test.lines, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "Dockerfile")
			if err := os.WriteFile(file, []byte("# syntax=docker/dockerfile:1-labs\nFROM scratch\n"+test.lines+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			r, err := readRecipe(file, nil)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("the error is %v, without a word of %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(r.copies) != 1 || !slices.Equal(r.config.Entrypoint, []string{"/usr/bin/x", "run"}) || !slices.Equal(r.config.Cmd, []string{"--fast"}) {
				t.Errorf("%+v, %+v", r.copies, r.config)
			}
		})
	}
}

package main

import (
	"fmt"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// recipe is the last stage of the Dockerfile: what is copied into the image from where, and its configuration. So what an image
// has is written in one place, whoever builds it.
type recipe struct {
	copies []*instructions.CopyCommand
	config v1.Config
}

// readRecipe takes what an image that starts from scratch can need. Anything else is an error: it would be missing here.
func readRecipe(dockerfile string, args map[string]string) (*recipe, error) {
	file, err := os.Open(dockerfile)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	parsed, err := parser.Parse(file)
	if err != nil {
		return nil, err
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, err
	}
	stage := stages[len(stages)-1]
	if stage.BaseName != "scratch" {
		return nil, fmt.Errorf("the last stage is FROM %s, not from scratch", stage.BaseName)
	}
	r := &recipe{config: v1.Config{Labels: map[string]string{}}}
	known := map[string]string{} // arguments that were declared
	lex := shell.NewLex('\\')
	for _, command := range stage.Commands {
		if expandable, ok := command.(instructions.SupportsSingleWordExpansion); ok {
			err := expandable.Expand(func(word string) (string, error) {
				expanded, unmatched, err := lex.ProcessWord(word, variables(known))
				for name := range unmatched {
					return "", fmt.Errorf("%s: no ARG %s", command, name)
				}
				return expanded, err
			})
			if err != nil {
				return nil, err
			}
		}
		switch command := command.(type) {
		case *instructions.ArgCommand:
			for _, arg := range command.Args {
				value, ok := args[arg.Key]
				if !ok {
					return nil, fmt.Errorf("ARG %s: the release has no value for it", arg.Key)
				}
				known[arg.Key] = value
			}
		case *instructions.CopyCommand:
			if command.Chmod != "" || command.Chown != "" || len(command.ExcludePatterns) > 0 || command.Parents || command.Link ||
				len(command.SourceContents) > 0 {
				return nil, fmt.Errorf("%s: the release can't carry out %s: it knows files and --from", dockerfile, command)
			}
			r.copies = append(r.copies, command)
		case *instructions.EnvCommand:
			for _, pair := range command.Env {
				r.config.Env = append(r.config.Env, pair.String())
			}
		case *instructions.LabelCommand:
			for _, pair := range command.Labels {
				r.config.Labels[pair.Key] = pair.Value
			}
		case *instructions.EntrypointCommand:
			if command.PrependShell {
				return nil, fmt.Errorf("%s: the image has no shell for %s: write a list", dockerfile, command)
			}
			r.config.Entrypoint = command.CmdLine
		case *instructions.CmdCommand:
			if command.PrependShell {
				return nil, fmt.Errorf("%s: the image has no shell for %s: write a list", dockerfile, command)
			}
			r.config.Cmd = command.CmdLine
		default:
			return nil, fmt.Errorf("%s: the release can't carry out %s", dockerfile, strings.ToUpper(command.Name()))
		}
	}
	return r, nil
}

type variables map[string]string

func (v variables) Get(name string) (string, bool) { value, ok := v[name]; return value, ok }

func (v variables) Keys() []string {
	var names []string
	for name := range v {
		names = append(names, name)
	}
	return names
}

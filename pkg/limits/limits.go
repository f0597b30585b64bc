// Package limits sees to it, before anything else is done, that the agent has the open files and the threads that it will
// need. A program that runs out of either ends, or goes on without its work, at some later moment and without a reason
// that anybody could find; so it gets both at the start, or ends there with an error that names the limit.
package limits

import "github.com/imds-guard/imds-guard/pkg/limits/openfiles"

// Prepare makes all the threads that the agent will ever need. It is to be called first: what needs a thread before may
// fail. That this package is imported has raised the limit of open files already, see openfiles.
//
// The error names the limit that is too low, what it is, what is needed, and where it is set. A limit that can't be read is
// no error.
func Prepare() error {
	if openfiles.Err != nil {
		return openfiles.Err
	}
	return prepareThreads()
}

// Package limits makes sure, before anything else is done, that the agent has the open files and threads that it will need. A
// program that runs out of either crashes, or goes on without doing its work, at some later moment and for no visible reason.
// So it gets both at the start, or exits there with an error that names the limit.
package limits

import "github.com/imds-guard/imds-guard/pkg/limits/openfiles"

// Prepare creates all the threads that the agent will ever need. It has to be called first: anything that needs a thread
// before that may fail. Importing this package has already raised the limit of open files, see openfiles.
//
// The error names the limit that is too low, its value, what is needed, and where to set it. A limit that can't be read is
// not an error.
func Prepare() error {
	if openfiles.Err != nil {
		return openfiles.Err
	}
	return prepareThreads()
}

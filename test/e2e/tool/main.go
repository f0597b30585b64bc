//go:build linux

// tool is what the end-to-end tests run in pods and outside the node, as one static binary:
//
//	tool pause         a pod's sandbox: does nothing
//	tool imds ADDRESS  a stand-in for the metadata service, which logs who reaches it
//	tool ask           a pod that asks the metadata service ten times a second, and tells each answer
package main

import (
	"fmt"
	"os"
)

func main() {
	if len(os.Args) < 2 {
		os.Args = append(os.Args, "")
	}
	var err error
	switch arguments := os.Args[2:]; os.Args[1] {
	case "pause":
		pause()
	case "imds":
		err = serveIMDS(arguments)
	case "ask":
		err = ask(arguments)
	default:
		err = fmt.Errorf("unknown command %q: want pause, imds or ask", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

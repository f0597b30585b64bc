//go:build linux

// The sandbox process of a pod.

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// pause waits to be told to stop. Processes that lost their parent in the pod become its children, so it reaps them.
func pause() {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGCHLD)
	for s := range signals {
		if s != syscall.SIGCHLD {
			return
		}
		for {
			if pid, _ := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 {
				break
			}
		}
	}
}

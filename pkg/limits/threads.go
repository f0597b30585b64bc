// The threads of the Go runtime.

package limits

import (
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
)

// When the runtime needs a thread and can't make one it throws (runtime/os_linux.go, newosproc): nothing can catch that.
// It needs one whenever there is Go code to run and no idle thread to run it (runtime/proc.go, startm,
// startTheWorldWithSema), and it never ends an idle one. (It ends the thread of a goroutine that returns while locked to
// it; in the agent none does.) So as many are made as may be busy at once:
const (
	// maxProcs bounds GOMAXPROCS, the threads that run Go code at once. The agent has little to compute.
	maxProcs = 4
	// runtimeThreads: sysmon, which has no P; the template thread, which makes threads for locked ones; the one that
	// waits for signals (runtime/sigqueue.go, signal_recv); the one that waits in epoll (findRunnable).
	runtimeThreads = 4
	// perProc: the thread that runs Go code, and the one from which it has just taken over, which is not idle until it has
	// put itself on the list (stopm).
	perProc = 2
	// blockedThreads is how many goroutines may sit in the kernel at once, or be locked to a thread: up to 4 keepers of a
	// layer that wait for a command, and their time limits, which look into /proc; the poll of the legacy tables; a line
	// for the log whose reader has stopped; the record on /run; the files of the web configuration, certificates and
	// the token, which may be on a disk that hangs.
	blockedThreads = 16
	// reserve: in minutes of collections, timers, connections and commands at full load, beside 16 blocked threads, one more
	// was in use than those above.
	reserve = 4
	// commands are not threads of ours but count like those: each of 2 layers runs one, and that may run modprobe.
	commands = 4
)

// threads is how many the process needs in all: 32 with four processors. One that is idle costs some 45 KiB of memory.
func threads(procs int) int { return runtimeThreads + perProc*procs + blockedThreads + reserve }

// prepareThreads makes the threads, if they can all be made.
func prepareThreads() error {
	procs := runtime.GOMAXPROCS(0)
	if asked, err := strconv.Atoi(os.Getenv("GOMAXPROCS")); err != nil || asked < 1 {
		procs = min(procs, maxProcs)
		runtime.GOMAXPROCS(procs) // even to what it is: the runtime would follow a change of the node's processors
	}
	need := threads(procs)
	if err := checkRoom(need); err != nil {
		return err
	}
	makeThreads(need)
	return nil
}

// makeThreads returns when the process has n threads.
func makeThreads(n int) {
	var holders sync.WaitGroup
	release := make(chan struct{})
	for ownThreads() < n {
		held := make(chan struct{})
		holders.Go(func() {
			runtime.LockOSThread() // so that the next one needs another
			defer runtime.UnlockOSThread()
			close(held)
			<-release
		})
		<-held
	}
	close(release)
	holders.Wait()
	// The runtime counts threads that it has not made yet. They are given a P before, and the world stops only when every
	// P has somebody to stop it: then all are there.
	runtime.ReadMemStats(new(runtime.MemStats))
}

// ownThreads is how many the runtime has made, or is about to.
func ownThreads() int {
	sample := []metrics.Sample{{Name: "/sched/threads/total:threads"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

// The threads of the Go runtime.

package limits

import (
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
)

// When the Go runtime needs a thread and can't create one, it throws (runtime/os_linux.go, newosproc), and nothing can catch
// that. It needs one whenever there is Go code to run and no idle thread to run it (runtime/proc.go, startm,
// startTheWorldWithSema), and it never ends an idle one. (It ends the thread of a goroutine that returns while locked to it;
// the agent has none.) So as many are created as may be busy at once:
const (
	// maxProcs bounds GOMAXPROCS, the threads that run Go code at once. The agent has little to compute.
	maxProcs = 4
	// runtimeThreads: sysmon, which has no P; the template thread, which creates threads for locked ones; the one that waits
	// for signals (runtime/sigqueue.go, signal_recv); and the one that waits in epoll (findRunnable).
	runtimeThreads = 4
	// perProc: the thread that runs Go code, and the one it has just taken over from, which is not idle until it has put itself
	// on the list (stopm).
	perProc = 2
	// blockedThreads is how many goroutines may be blocked in the kernel, or locked to a thread, at once: up to 4 keepers of a
	// layer that wait for a command, and their time limits, which read /proc; the poll of the legacy tables; a log line whose
	// reader has stopped; the record on /run; the files of the web configuration, certificates and the token, which may be on a
	// disk that hangs.
	blockedThreads = 16
	// reserve: over minutes of garbage collections, timers, connections and commands at full load, with 16 blocked threads, one
	// more was in use than the numbers above add up to.
	reserve = 4
	// commands are not our threads but count like them: each of 2 layers runs one, and that may run modprobe.
	commands = 4
)

// threads returns how many threads the process needs in total: 32 with four processors. An idle one costs some 45 KiB of
// memory.
func threads(procs int) int { return runtimeThreads + perProc*procs + blockedThreads + reserve }

// prepareThreads creates the threads, if all of them can be created.
func prepareThreads() error {
	procs := runtime.GOMAXPROCS(0)
	if asked, err := strconv.Atoi(os.Getenv("GOMAXPROCS")); err != nil || asked < 1 {
		procs = min(procs, maxProcs)
		runtime.GOMAXPROCS(procs) // even to its current value, or the runtime would follow changes of the node's processors
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
	// The runtime counts threads before it has created them. They are given a P first, and the world stops only once every P
	// has a thread to stop it: after that, all of them exist.
	runtime.ReadMemStats(new(runtime.MemStats))
}

// ownThreads returns how many threads the runtime has created, or is about to.
func ownThreads() int {
	sample := []metrics.Sample{{Name: "/sched/threads/total:threads"}}
	metrics.Read(sample)
	return int(sample[0].Value.Uint64())
}

//go:build e2e && figures

// What the agents' watches of pods cost an API server with 5,000 nodes.

package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	apinode "github.com/imds-guard/imds-guard/pkg/node"
	"github.com/imds-guard/imds-guard/pkg/pods"
)

// Each of 5,000 stand-ins for an agent watches its own node's pods as an agent does, by the agent's client and over a connection
// of its own. One pod's label is changed again and again, without them and with them.
func TestMeasureWatches(t *testing.T) {
	begin(t)
	const nodes, changes = 5000, 1000
	pod := Pod{Name: "changed", Image: toolImage, Args: []string{"pause"}}
	node.WaitRunning(t, pod.Name, node.create(t, pod.manifest())[0])
	api := apiServer{t: t, pid: node.componentPID(t, "kube-apiserver")}
	change := func() {
		for i := range changes {
			patch := fmt.Appendf(nil, `{"metadata":{"labels":{"round":"%d"}}}`, i)
			if _, err := node.Client.CoreV1().Pods("default").Patch(t.Context(), pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	change() // and the server is warm
	idle := func() { time.Sleep(time.Minute) }
	// What a change costs is beside what the server does anyway.
	perChange := func(perMinute time.Duration) time.Duration {
		started := time.Now()
		all := api.cpu(change)
		return ((all - time.Duration(time.Since(started).Minutes()*float64(perMinute))) / changes).Round(10 * time.Microsecond)
	}
	cpu, memory := api.cpu(idle), api.memory()
	changeCPU := perChange(cpu)

	base, err := clientcmd.BuildConfigFromFlags("", filepath.Join(node.State, "pki/admin.conf"))
	if err != nil {
		t.Fatal(err)
	}
	base.QPS = -1
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	begun := api.cpu(func() {
		watches := make([]*pods.Watch, nodes)
		for i := range watches {
			config := rest.CopyConfig(base)
			// A function of its own makes it a transport of its own: client-go shares those of equal configurations.
			config.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				return node.dial(ctx, network, address)
			}
			client, err := apinode.API(config, "e2e", func(string, bool) {})
			if err != nil {
				t.Fatal(err)
			}
			watches[i] = pods.New(client, fmt.Sprintf("node-%d", i), func() {})
			running.Go(func() { watches[i].Run(ctx) })
			if i%50 == 0 {
				time.Sleep(time.Second) // a rollout of 5,000 agents in less than two minutes
			}
		}
		for i, w := range watches {
			wait(t, fmt.Sprintf("watch %d", i), func() error {
				if _, known := w.List(); !known {
					return fmt.Errorf("the API server has not answered")
				}
				return nil
			})
		}
	})
	idle()
	withCPU, withMemory := api.cpu(idle), api.memory()
	withChangeCPU := perChange(withCPU)

	figures.add(t, fmt.Sprintf("API server, %d agents begin to watch their pods: CPU in all", nodes), begun.Round(100*time.Millisecond).String())
	figures.add(t, "then, nothing changes: CPU per minute, without and with the watches", fmt.Sprintf("%s, %s", cpu, withCPU))
	figures.add(t, "one change of a pod: CPU beside that, without and with the watches", fmt.Sprintf("%s, %s", changeCPU, withChangeCPU))
	figures.add(t, "resident memory, without and with the watches", fmt.Sprintf("%.0f MiB, %.0f MiB (%.0f KiB a watch and its connection)",
		memory, withMemory, (withMemory-memory)*1024/nodes))
}

// componentPID is a component's process, in the node's own count.
func (n *Node) componentPID(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(n.path("/run/e2e/" + name + ".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(string(text), " ")
	return pid
}

// apiServer is its process, looked at from outside.
type apiServer struct {
	t   *testing.T
	pid string
}

// stat is what /proc/PID/stat has after the process's name, which may have spaces.
func (a apiServer) stat() []string {
	a.t.Helper()
	text, err := os.ReadFile(node.path("/proc/" + a.pid + "/stat"))
	if err != nil {
		a.t.Fatal(err)
	}
	return strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
}

// cpu is the processor time, of user and kernel, that the process takes while something happens. The kernel counts it in
// hundredths of a second (proc(5), /proc/PID/stat, utime and stime).
func (a apiServer) cpu(do func()) time.Duration {
	a.t.Helper()
	used := func() (ticks int) {
		for _, field := range a.stat()[11:13] {
			n, err := strconv.Atoi(field)
			if err != nil {
				a.t.Fatal(err)
			}
			ticks += n
		}
		return ticks
	}
	before := used()
	do()
	return time.Duration(used()-before) * 10 * time.Millisecond
}

// memory is what of it is resident, in MiB.
func (a apiServer) memory() float64 {
	a.t.Helper()
	resident := residentMiB(node.path("/proc/" + a.pid + "/statm"))
	if resident == 0 {
		a.t.Fatal("the API server has ended")
	}
	return resident
}

//go:build e2e && figures

// Measurements that take long, or that nothing depends on: not a part of `make e2e`, but of `make e2e FIGURES=FILE`.

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// What a node has to download before it is protected.
func TestMeasureImage(t *testing.T) {
	layers := filepath.Join(t.TempDir(), "image")
	push := exec.Command("node/buildah.sh", "push", "--format", "oci", image+":v0.1.0", "oci:"+layers)
	if out, err := push.CombinedOutput(); err != nil {
		t.Fatalf("writing the image: %v: %s", err, out)
	}
	bytes := int64(0)
	err := filepath.WalkDir(filepath.Join(layers, "blobs"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	figures.add(t, "image, compressed by gzip", fmt.Sprintf("%.1f MB", float64(bytes)/1e6))
}

// How long kubectl apply takes to protect a node, several times.
func TestMeasureApply(t *testing.T) {
	begin(t)
	var took []time.Duration
	for range 5 {
		node.clean(t)
		started := time.Now()
		node.Install(t, standard)
		node.WaitAgent(t)
		took = append(took, time.Since(started))
	}
	slices.Sort(took)
	figures.add(t, "from `kubectl apply` to the node protected, 5 times: least, median, most",
		fmt.Sprintf("%s, %s, %s", seconds(took[0]), seconds(took[2]), seconds(took[4])))
}

// What the agent costs when nothing happens, and when 110 pods come and go.
func TestMeasureCost(t *testing.T) {
	begin(t)
	node.Install(t, standard)
	node.WaitAgent(t)

	// The first heartbeats are close together: 10 s, 20 s, … 5 min. The window fits a whole number of those that follow.
	const settle, window = 6 * time.Minute, 15 * time.Minute
	step(t, "waiting %s for the heartbeats to become regular", settle)
	time.Sleep(settle)
	requests, heard := node.audited(t), node.Metric(t, "imds_guard_kubernetes_requests_total")
	idle := node.cost(t, func() {
		step(t, "idle for %s", window)
		time.Sleep(window)
	})
	requests, heard = node.audited(t)-requests, node.Metric(t, "imds_guard_kubernetes_requests_total")-heard
	if float64(requests) != heard {
		t.Errorf("the API server counted %d requests, and the agent %v", requests, heard)
	}
	figures.add(t, "idle: CPU, of one core", idle.cpu)
	figures.add(t, "idle: resident memory, most", idle.memory)
	perHour := float64(requests) * float64(time.Hour) / float64(window)
	figures.add(t, "idle: API requests per node and hour, by the API server's audit log",
		fmt.Sprintf("%.0f (%d in %s)", perHour, requests, window))
	figures.add(t, "the same for 5,000 nodes, per second", fmt.Sprintf("%.1f", perHour*5000/3600))

	const pods = 110
	var names, manifests []string
	for i := range pods {
		p := Pod{Name: fmt.Sprintf("churn-%d", i), Image: toolImage, Args: []string{"pause"}}
		names, manifests = append(names, p.Name), append(manifests, p.manifest())
	}
	requests = node.audited(t)
	started := time.Now()
	busy := node.cost(t, func() {
		for round := range 3 {
			step(t, "%d pods are created and deleted, round %d", pods, round+1)
			for i, uid := range node.create(t, manifests...) {
				node.WaitRunning(t, names[i], uid)
			}
			node.Kubectl(t, append([]string{"delete", "pod", "--grace-period=1"}, names...)...)
		}
	})
	figures.add(t, fmt.Sprintf("%d pods created and deleted 3 times in %s: CPU, of one core", pods,
		time.Since(started).Round(time.Second)), busy.cpu)
	figures.add(t, "the same: resident memory, most", busy.memory)
	figures.add(t, "the same: API requests of the agent", fmt.Sprint(node.audited(t)-requests))
}

type cost struct{ cpu, memory string }

// cost measures the agent from outside, without asking it for anything, while something happens: CPU by its container's
// cgroup, which counts the iptables commands that it runs, too; resident memory of its process, as the kernel says each
// second.
func (n *Node) cost(t *testing.T, do func()) cost {
	t.Helper()
	pid := n.AgentPID(t)
	usage := filepath.Join(cgroupOf(t, pid, "cpuacct"), "cpuacct.usage")
	used := func() time.Duration {
		text, err := os.ReadFile(usage)
		if err != nil {
			t.Fatal(err)
		}
		nanoseconds, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(nanoseconds)
	}

	own, before, started := n.Metric(t, "process_cpu_seconds_total"), used(), time.Now()
	stop, most := make(chan struct{}), make(chan float64)
	go func() {
		highest, tick := 0.0, time.Tick(time.Second)
		for {
			highest = math.Max(highest, residentMiB(fmt.Sprintf("/proc/%d/statm", pid)))
			select {
			case <-tick:
			case <-stop:
				most <- highest
				return
			}
		}
	}()
	do()
	close(stop)
	all, seconds := (used() - before).Seconds(), time.Since(started).Seconds()
	own = n.Metric(t, "process_cpu_seconds_total") - own
	return cost{
		fmt.Sprintf("%.2f %% (%.2f %% its own process, the rest iptables commands)", 100*all/seconds, 100*own/seconds),
		fmt.Sprintf("%.1f MiB", <-most),
	}
}

// residentMiB returns what a process's /proc/PID/statm says, and 0 if it has ended.
func residentMiB(statm string) float64 {
	text, err := os.ReadFile(statm)
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseFloat(fields[1], 64)
	if err != nil {
		return 0
	}
	return pages * float64(os.Getpagesize()) / (1 << 20)
}

// audited returns how many requests of the agent's service account the API server has logged.
func (n *Node) audited(t *testing.T) int {
	t.Helper()
	file, err := os.Open(filepath.Join(n.State, "log/audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	count := 0
	scanner := bufio.NewScanner(file)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		var event struct{ Stage string }
		if err := json.Unmarshal(scanner.Bytes(), &event); err != nil {
			t.Fatalf("reading the audit log: %v", err)
		}
		if event.Stage == "ResponseComplete" {
			count++
		}
	}
	return count
}

// What an unprepared reboot costs: pods that are still bound to the node start beside the agent, not after it.
func TestMeasureBareReboot(t *testing.T) {
	begin(t)
	node.Install(t, standard)
	agent := node.WaitAgent(t)
	asker := node.RunAsker(t, "asker", false)
	var rows []string
	for range 5 {
		before := asker.Answers()
		asker.Never(t)
		node.Reboot(t)
		node.StartKubelet(t)
		// Until the kubelet says otherwise, the pod is as ready as it was before the reboot.
		agent = node.waitAgent(t, "the agent to run again", anotherContainerThan(agent))
		asker.WaitAttempts(t, 50)
		rows = append(rows, fmt.Sprint(asker.Answers()-before))
		node.Kubectl(t, "delete", "pod", "asker")
		asker = node.RunAsker(t, "asker", false)
	}
	figures.add(t, "reboot without the taint, 5 times: answers that a restarted pod got (it asks 10 times a second)",
		strings.Join(rows, ", "))
}

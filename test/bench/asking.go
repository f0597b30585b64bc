//go:build linux

// What it takes to know who asks: how soon a pod is in the metrics and told of, and what that costs.

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/imds-guard/imds-guard/internal/testapi"
	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/rules"
)

const (
	askingPods   = 110 // a usual node's most, and
	askingMost   = 250 // that of a large one
	floodGoal    = 0.05
	floodAttempt = "tcp 169.254.169.254:80"
)

func measureAsking(ctx context.Context, b *bench) (result, error) {
	r := result{how: fmt.Sprintf("The node has a stand-in for the API server that knows its pods. One after the other, each pod asks once, in its first "+
		"process. The time is from just before that process starts until its series is in /metrics (read every 5 ms), and until the API "+
		"server has the event. Then %d pods ask %d times in all; then one asks as fast as it can, %d times. CPU is the agent's until 3 s after "+
		"the last call. Memory is VmRSS after that, of agents that have heard of that many pods.", askingPods, 10*askingPods, 10*testnode.TimedCalls)}
	for _, pods := range []int{askingPods, askingMost} {
		rows, err := askingOf(ctx, b, pods)
		if err != nil {
			return result{}, fmt.Errorf("%d pods: %w", pods, err)
		}
		r.rows = append(r.rows, rows...)
	}
	return r, nil
}

func askingOf(ctx context.Context, b *bench, pods int) (rows []row, err error) {
	err = withNode(ctx, rules.NFT, func(n *node) error {
		api, err := startAPI(n, pods)
		if err != nil {
			return err
		}
		defer api.close()
		n.flags = []string{"--kubernetes", "on", "--node-name", "n", "--kubeconfig", api.kubeconfig}
		return b.withAgent(ctx, n, func(a *agent) (err error) {
			if err := b.isGuard(a.cmd.Process.Pid); err != nil {
				return err
			}
			if pods == askingPods {
				if rows, err = askOnce(ctx, n, api, pods); err != nil {
					return err
				}
				flood, err := askFlood(ctx, n, a, pods)
				if err != nil {
					return err
				}
				rows = append(rows, flood...)
			} else {
				for i := range pods {
					if _, err := n.SocketCallsBy(podCgroup(i), n.pod.Namespace, floodAttempt); err != nil {
						return err
					}
				}
				if err := wait(ctx, 3*time.Second); err != nil {
					return err
				}
			}
			memory, err := residentMemory(a.cmd.Process.Pid)
			rows = append(rows, row{
				what: fmt.Sprintf("%d pods that ask, memory", pods), goal: fmt.Sprintf("≤ %d MiB", memoryGoal>>20),
				result: fmt.Sprintf("%.1f MiB", float64(memory)/(1<<20)), met: verdict(memory <= memoryGoal),
			})
			return err
		})
	})
	for _, r := range rows {
		b.log.Printf("asking: %s: %s", r.what, r.result)
	}
	return rows, err
}

// askOnce times each pod's first attempt.
func askOnce(ctx context.Context, n *node, api *standIn, pods int) ([]row, error) {
	var metric, event []time.Duration
	for i := range pods {
		began := time.Now()
		if _, err := n.SocketCallsBy(podCgroup(i), n.pod.Namespace, floodAttempt); err != nil {
			return nil, err
		}
		series := fmt.Sprintf(`pod="pod-%d",`, i)
		for {
			text, err := n.Host().Get(ctx, "http://127.0.0.1:9169/metrics")
			if err != nil {
				return nil, err
			}
			if strings.Contains(text, series) {
				metric = append(metric, time.Since(began))
				break
			}
			if err := wait(ctx, 5*time.Millisecond); err != nil {
				return nil, err
			}
		}
		at, err := api.told(ctx, i)
		if errors.Is(err, errNotTold) { // a burst of them is over
			continue
		}
		if err != nil {
			return nil, err
		}
		event = append(event, at.Sub(began))
	}
	say := func(what string, times []time.Duration) row {
		return row{what: what, result: fmt.Sprintf("median %s, p99 %s, n = %d", milliseconds(median(times)), milliseconds(p99(times)), len(times))}
	}
	return []row{say("from an attempt to its metric", metric), say("from an attempt to its event", event)}, nil
}

// askFlood measures what the agent uses while many ask, and while one asks as fast as it can.
func askFlood(ctx context.Context, n *node, a *agent, pods int) (rows []row, err error) {
	used := func(ask func() error) (cpu, during time.Duration, err error) {
		before, err := cpuTime(a.cmd.Process.Pid)
		if err != nil {
			return 0, 0, err
		}
		began := time.Now()
		if err := errors.Join(ask(), wait(ctx, 3*time.Second)); err != nil {
			return 0, 0, err
		}
		after, err := cpuTime(a.cmd.Process.Pid)
		return after - before, time.Since(began), err
	}
	cpu, during, err := used(func() error {
		for i := range pods {
			if _, err := n.SocketCallsBy(podCgroup(i), n.pod.Namespace, slices.Repeat([]string{floodAttempt}, 10)...); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	rows = append(rows, row{
		what:   fmt.Sprintf("%d pods that ask 10 times each, CPU for 1,000 attempts", pods),
		result: fmt.Sprintf("%s (over %.0f s, including the agent's other work)", milliseconds(cpu*1000/time.Duration(10*pods)), during.Seconds()),
	})
	cpu, during, err = used(func() error {
		_, err := n.SocketCallsBy(podCgroup(0), n.pod.Namespace, slices.Repeat([]string{"timed-connect 169.254.169.254:80"}, 10)...)
		return err
	})
	if err != nil {
		return nil, err
	}
	share := cpu.Seconds() / during.Seconds()
	return append(rows, row{
		what: "one pod that asks as fast as it can, CPU", goal: fmt.Sprintf("≤ %.0f %% of a core", floodGoal*100),
		result: fmt.Sprintf("%.2f %% (%s in %.1f s, %d attempts)", share*100, milliseconds(cpu), during.Seconds(), 10*testnode.TimedCalls),
		met:    verdict(share <= floodGoal),
	}), nil
}

func podCgroup(i int) string { return "burstable/pod" + testapi.PodUID(i) + "/container" }

// standIn is an API server that knows some pods, and notes when it is told of an event.
type standIn struct {
	server     *http.Server
	kubeconfig string
	directory  string

	mu     sync.Mutex
	events map[int]time.Time
}

var errNotTold = errors.New("no event came")

func startAPI(n *node, pods int) (*standIn, error) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}
	for i := range pods {
		list.Items = append(list.Items, corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: fmt.Sprint("pod-", i), UID: types.UID(testapi.PodUID(i)), ResourceVersion: "1",
		}})
	}
	s := &standIn{events: map[int]time.Time{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/v1/pods", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		switch q := r.URL.Query(); {
		case q.Get("sendInitialEvents") != "":
			testapi.RefuseStreaming(w)
		case q.Get("watch") != "":
			w.WriteHeader(http.StatusOK)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		default:
			_ = json.NewEncoder(w).Encode(list)
		}
	})
	mux.HandleFunc("POST /api/v1/namespaces/{namespace}/events", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.note(body, pods)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte(`{"kind":"Event","apiVersion":"v1","metadata":{"name":"e","namespace":"default"}}`))
	})
	mux.HandleFunc("/", testapi.Node)
	listener, err := n.Host().Listen("tcp", testapi.Address)
	if err != nil {
		return nil, err
	}
	s.server = &http.Server{Handler: mux}
	go s.server.Serve(listener)
	if s.directory, err = os.MkdirTemp("", "imds-guard-bench"); err != nil {
		return nil, errors.Join(err, s.server.Close())
	}
	if s.kubeconfig, err = testapi.WriteKubeconfig(s.directory); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *standIn) close() {
	_ = s.server.Close()
	_ = os.RemoveAll(s.directory)
}

// note finds the pod that an event is about, whatever the body is encoded in.
func (s *standIn) note(body []byte, pods int) {
	at := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range pods {
		if _, known := s.events[i]; !known && bytes.Contains(body, []byte(testapi.PodUID(i))) {
			s.events[i] = at
		}
	}
}

// told waits for a pod's event.
func (s *standIn) told(ctx context.Context, i int) (time.Time, error) {
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); {
		s.mu.Lock()
		at, known := s.events[i]
		s.mu.Unlock()
		if known {
			return at, nil
		}
		if err := wait(ctx, time.Millisecond); err != nil {
			return time.Time{}, err
		}
	}
	return time.Time{}, errNotTold
}

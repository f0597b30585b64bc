package agent

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/imds-guard/imds-guard/internal/testnode"
	"github.com/imds-guard/imds-guard/pkg/report"
)

// What the report says in audit mode comes true when enforcing: the workloads in it break, and no others. Those that ask use
// the software that pods use in real life. Nothing they receive is disclosed by the agent.
func TestRollout(t *testing.T) {
	t.Parallel()
	n, s, flags := askingNode(t)
	s.listen()
	all := clients(sdkClient(t))
	pods := addClients(n, s, all)
	var want []string
	for _, c := range all {
		if c.asks != "" {
			want = append(want, fmt.Sprintf("%s pods=%d %s", c.workload(), c.pods, c.asks))
		}
	}
	slices.Sort(want)
	if len(pods) != 30 || len(want) != 8 {
		t.Fatalf("%d pods, %d workloads that ask", len(pods), len(want))
	}
	var got []string
	defer func() {
		if t.Failed() {
			t.Logf("the report had\n%s", strings.Join(got, "\n"))
		}
	}()

	a := n.startReady(append(flags, "--log-level", "debug", "--mode", "audit")...)
	for _, v := range variants[:2] {
		eventually(t, "attempts are counted", func() bool {
			return a.metric(fmt.Sprintf(`imds_guard_rule_state{family="%s",layer="cgroup",state="auditing"}`, v.family)) == 1
		})
	}
	results := n.runClients(pods)
	var printed string
	for i, p := range pods {
		if !results[i].served(p.client) {
			t.Errorf("in audit mode %s ends with %+v", p.workload(), results[i])
		}
		printed += results[i].output
	}
	if got := secretsIn(printed); len(got) != len(secrets) {
		t.Errorf("of the secrets clients have printed only %q", got)
	}
	var audited report.Node
	eventually(t, "the report has those that ask, and what for", func() bool {
		audited = n.report()
		got = asked(audited)
		return slices.Equal(got, want) && !slices.ContainsFunc(audited.Workloads, func(w report.Workload) bool { return w.Audited == 0 })
	})
	n.checkAdvice(all)
	told := func(reasons ...string) func() bool {
		return func() bool {
			return !slices.ContainsFunc(pods, func(p clientPod) bool {
				got := s.told(p.uid)
				for i := range got {
					got[i], _, _ = strings.Cut(got[i], " ")
				}
				return p.asks != "" && !slices.Equal(got, reasons)
			})
		}
	}
	eventually(t, "each of those that ask has its event", told("IMDSAccessAudited"))
	n.endWithoutSecrets(a, s, append(flags, "--mode", "audit")...)
	if lines := a.log.Count("a pod asked", "and would have been refused"); lines != len(want) || a.log.Count("and was refused") > 0 {
		t.Errorf("in audit mode the log tells of %d pods that would be refused, or of one that is", lines)
	}
	if slices.ContainsFunc(audited.Workloads, func(w report.Workload) bool { return w.Blocked > 0 }) {
		t.Errorf("in audit mode somebody was blocked: %+v", audited.Workloads)
	}

	a = n.startReady(append(flags, "--log-level", "debug")...)
	eventually(t, "all layers are in force", func() bool { return a.metric("imds_guard_degraded") == 0 })
	before := n.IMDS().Requests()
	results = n.runClients(pods)
	if after := n.IMDS().Requests(); after != before {
		t.Errorf("the endpoint has had %d requests", after-before)
	}
	for _, v := range variants[:2] {
		n.mustBeBlocked(v) // and the endpoint answers the node
	}
	var broken []string
	for i, p := range pods {
		switch {
		case results[i].refused(p.client):
			broken = append(broken, p.workload())
		case !results[i].served(p.client):
			t.Errorf("%s ends with %+v", p.workload(), results[i])
		}
	}
	slices.Sort(broken)
	var predicted []string
	for _, w := range audited.Workloads {
		predicted = append(predicted, w.Namespace+"/"+w.Kind+"/"+w.Name)
	}
	slices.Sort(predicted)
	if !slices.Equal(broken, predicted) {
		t.Errorf("in force it breaks\n%q, and the report had\n%q", broken, predicted)
	}
	eventually(t, "those that are refused are counted", func() bool {
		return !slices.ContainsFunc(n.report().Workloads, func(w report.Workload) bool { return w.Blocked == 0 })
	})
	eventually(t, "each of them has its event", told("IMDSAccessAudited", "IMDSAccessBlocked"))
	if got = asked(n.report()); !slices.Equal(got, want) {
		t.Error("in force there is something else in the report")
	}
	for _, p := range pods {
		if told := s.told(p.uid); p.asks == "" && len(told) > 0 {
			t.Errorf("%s has asked for nothing, and the events are %q", p.workload(), told)
		}
	}
	n.endWithoutSecrets(a, s, flags...)
}

// result is what came of a client.
type result struct {
	code   int
	output string
}

func (r result) served(c client) bool { return r.code == 0 && strings.Contains(r.output, c.prints) }

// refused: it gave up by itself, without what it had asked for.
func (r result) refused(c client) bool { return r.code > 0 && !strings.Contains(r.output, c.prints) }

// runClients runs those of all pods at the same time.
func (n *node) runClients(pods []clientPod) []result {
	n.t.Helper()
	// Nothing of this machine's gets to them, such as a ~/.aws, another Python or a proxy. They wait for the endpoint for longer than
	// they do by default: this machine may be busy.
	env := []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + n.t.TempDir(), "AWS_METADATA_SERVICE_TIMEOUT=30", "AWS_METADATA_SERVICE_NUM_ATTEMPTS=1"}
	ctx, cancel := context.WithTimeout(context.Background(), 5*deadline)
	defer cancel()
	results := make([]result, len(pods))
	var running sync.WaitGroup
	for i, p := range pods {
		running.Go(func() {
			cmd := p.Command(ctx, "sh", "-ec", p.command)
			cmd.Env = env
			container, err := n.InCgroup(cmd, p.cgroup)
			if err != nil {
				n.t.Error(err)
				return
			}
			defer container.Close()
			out, err := cmd.CombinedOutput()
			if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
				n.t.Errorf("running the client of %s: %v", p.workload(), err)
				return
			}
			results[i] = result{cmd.ProcessState.ExitCode(), string(out)}
		})
	}
	running.Wait()
	return results
}

// version is that of a client's, which is the machine's.
var version = regexp.MustCompile(`/[0-9.]+$`)

// asked has a line for each workload of a report: how many of its pods have asked, and what for.
func asked(r report.Node) (list []string) {
	for _, w := range r.Workloads {
		var requests []string
		for _, q := range w.Requests {
			requests = append(requests, q.Version+" "+q.Document+" "+version.ReplaceAllString(q.Agent, "/N"))
		}
		slices.Sort(requests)
		list = append(list, fmt.Sprintf("%s/%s/%s pods=%d %s", w.Namespace, w.Kind, w.Name, w.Pods, strings.Join(requests, ", ")))
	}
	slices.Sort(list)
	return list
}

// checkAdvice looks for what the report says to do about each of those that ask, and about nobody else.
func (n *node) checkAdvice(clients []client) {
	n.t.Helper()
	code, text, stderr := n.guard("report")
	if code != 0 {
		n.t.Errorf("report ends with %d: %s", code, stderr)
	}
	below := map[string]string{} // the lines of workloads
	workload := ""
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, " ") {
			below[workload] += line
		} else if words := strings.Fields(line); len(words) > 1 {
			workload = words[0] + "/" + words[1]
		}
	}
	for _, c := range clients {
		for _, advice := range []string{giveRole, setRegion, passRegion, moveData, lookUp} {
			if strings.Contains(below[c.workload()], advice) != (advice == c.advice) {
				n.t.Errorf("about %s the report says %q, and the advice is to be %q", c.workload(), below[c.workload()], c.advice)
			}
		}
	}
}

// secrets are the parts of the endpoint's answers that must not be disclosed anywhere.
var secrets = []string{testnode.IMDSToken, testnode.AccessKeyID, testnode.SecretAccessKey, testnode.SessionToken}

// secretsIn returns those that a text has.
func secretsIn(text string) []string {
	return slices.DeleteFunc(slices.Clone(secrets), func(s string) bool { return !strings.Contains(text, s) })
}

// endWithoutSecrets stops an agent, and searches everything that it wrote and left on the node for the secrets. Each of these
// places contains a known word that proves that it is the right one. flags are those for check.
func (n *node) endWithoutSecrets(a *agent, s *api, flags ...string) {
	n.t.Helper()
	type text struct{ what, is, word string }
	metrics, err := a.get("/metrics")
	if err != nil {
		n.t.Error(err)
	}
	_, check, _ := n.guard(append([]string{"check", "-o", "json"}, flags...)...)
	told := []text{{"the metrics", metrics, `namespace="shop"`}, {"check", check, `"layer": "cgroup"`}}
	for _, output := range []string{"text", "json", "yaml"} {
		_, stdout, stderr := n.guard("report", "-o", output)
		told = append(told, text{"the report as " + output, stdout + stderr, "shipper"})
	}
	a.signal(15)
	<-a.done
	told = append(told,
		text{"the log", a.log.String(), "layer=cgroup"},
		text{"what the API server was told", s.received.String(), "IMDSAccessAudited"},
		text{"the files", n.sh("find /run/imds-guard -type f -exec cat {} +"), "user data"},
	)
	for _, t := range told {
		if got := secretsIn(t.is); len(got) > 0 || !strings.Contains(t.is, t.word) {
			n.t.Errorf("%s: with the secrets %q, or without %q:\n%s", t.what, got, t.word, t.is)
		}
	}
}

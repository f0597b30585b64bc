// Which agents to ask.

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/pager"

	"github.com/imds-guard/imds-guard/internal/command"
)

// The chart's names, unless its nameOverride changes the label. The cleanup DaemonSet has another one.
const (
	agentLabel     = "app.kubernetes.io/name=imds-guard"
	agentContainer = "imds-guard"
)

// target is a node with its agent's pod, or the reason why no agent can be asked there.
type target struct {
	node   string
	pod    string
	reason string
}

// errNodesUnseen is returned along with targets: nodes without an agent can't be told.
var errNodesUnseen = errors.New("nodes without an agent are left out, because you are not allowed to list nodes")

// targets returns all nodes, or the named one, sorted. With errNodesUnseen there may be more.
func (a *api) targets(ctx context.Context, selector, only string) ([]target, error) {
	agents, err := a.agents(ctx, selector, only)
	if err != nil {
		return nil, command.Fail(fmt.Errorf("listing the agents' pods: %w", err))
	}
	found := map[string]target{}
	for node, p := range agents {
		found[node] = target{node, p.Name, whyNotRunning(p)}
	}
	nodes, unseen := a.nodes(ctx, only)
	switch {
	case apierrors.IsForbidden(unseen):
		unseen = errNodesUnseen
	case apierrors.IsNotFound(unseen) && only != "":
		return nil, fmt.Errorf("--node: the cluster has no node %q; `kubectl get nodes` lists them", only)
	case unseen != nil:
		return nil, command.Fail(fmt.Errorf("listing nodes: %w", unseen))
	}
	if len(found) == 0 && only == "" {
		return nil, command.Fail(fmt.Errorf("namespace %q has no agent pods (%s); give the right one with --namespace", a.namespace, selector))
	}
	for _, name := range nodes {
		if _, known := found[name]; !known {
			found[name] = target{node: name, reason: "no agent runs there"}
		}
	}
	if len(found) == 0 {
		found[only] = target{node: only, reason: "no agent runs there, or there is no such node"}
	}
	return slices.SortedFunc(maps.Values(found), func(x, y target) int { return strings.Compare(x.node, y.node) }), unseen
}

// agents returns the agents' pods by node, the best one for each.
func (a *api) agents(ctx context.Context, selector, only string) (map[string]*corev1.Pod, error) {
	options := metav1.ListOptions{LabelSelector: selector}
	if only != "" {
		options.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", only).String()
	}
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return a.core.Pods(a.namespace).List(ctx, options)
	})
	agents := map[string]*corev1.Pod{}
	err := pages.EachListItem(ctx, options, func(object runtime.Object) error {
		p := object.(*corev1.Pod)
		isAgent := slices.ContainsFunc(p.Spec.Containers, func(c corev1.Container) bool { return c.Name == agentContainer })
		if node := p.Spec.NodeName; node != "" && isAgent && (agents[node] == nil || better(p, agents[node])) {
			agents[node] = p
		}
		return nil
	})
	return agents, err
}

// better reports whether to ask a rather than b, two agents of one node: during an update the old one may still be there.
func better(a, b *corev1.Pod) bool {
	if running := whyNotRunning(a) == ""; running != (whyNotRunning(b) == "") {
		return running
	}
	if leaving := a.DeletionTimestamp != nil; leaving != (b.DeletionTimestamp != nil) {
		return !leaving
	}
	return b.CreationTimestamp.Before(&a.CreationTimestamp)
}

// whyNotRunning says why the agent's container is not running; it is empty if it is.
func whyNotRunning(p *corev1.Pod) string {
	why := string(p.Status.Phase)
	for _, c := range p.Status.ContainerStatuses {
		switch {
		case c.Name != agentContainer:
		case c.State.Running != nil:
			return ""
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			why = c.State.Waiting.Reason
		case c.State.Terminated != nil && c.State.Terminated.Reason != "":
			why = c.State.Terminated.Reason
		}
	}
	return fmt.Sprintf("its agent's pod %s is not running: %s", p.Name, why)
}

// nodes returns the nodes that should have an agent: Linux nodes that are EC2 instances.
func (a *api) nodes(ctx context.Context, only string) (names []string, err error) {
	client := a.metadata.Resource(corev1.SchemeGroupVersion.WithResource("nodes"))
	keep := func(n *metav1.PartialObjectMetadata) {
		if system := n.Labels[corev1.LabelOSStable]; system == "" || system == "linux" {
			if kind := n.Labels["eks.amazonaws.com/compute-type"]; kind != "fargate" && kind != "hybrid" {
				names = append(names, n.Name)
			}
		}
	}
	if only != "" {
		n, err := client.Get(ctx, only, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		keep(n)
		return names, nil
	}
	pages := pager.New(func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
		return client.List(ctx, options)
	})
	err = pages.EachListItem(ctx, metav1.ListOptions{}, func(object runtime.Object) error {
		keep(object.(*metav1.PartialObjectMetadata))
		return nil
	})
	return names, err
}

// What a pod is a part of, told without asking for its controllers.

package pods

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// templateHash is the label by which a Deployment's ReplicaSet, whose name ends in it, tells its pods
// (kubernetes.io/docs, "Pod-template-hash label").
const templateHash = "pod-template-hash"

// A CronJob's Jobs have the minute for which they were scheduled at the end of their names, since 1970 (kubernetes,
// pkg/controller/cronjob/utils.go, getJobName).
var scheduled = regexp.MustCompile(`-[0-9]{8,10}$`)

// workloadOf is the controller's, or, where its name says that it has one itself, that one's.
func workloadOf(p *corev1.Pod) Workload {
	for _, owner := range controllerOf(p) {
		switch hash := p.Labels[templateHash]; {
		case owner.Kind == "ReplicaSet" && hash != "" && strings.HasSuffix(owner.Name, "-"+hash):
			return Workload{"Deployment", strings.TrimSuffix(owner.Name, "-"+hash)}
		case owner.Kind == "Job" && scheduled.MatchString(owner.Name):
			return Workload{"CronJob", scheduled.ReplaceAllString(owner.Name, "")}
		case owner.Kind != "Node": // which owns the mirrors of static pods
			return Workload{owner.Kind, owner.Name}
		}
	}
	return Workload{"Pod", p.Name}
}

// controllerOf is the only owner that counts, if there is one.
func controllerOf(p *corev1.Pod) []metav1.OwnerReference {
	owner := metav1.GetControllerOfNoCopy(p)
	if owner == nil {
		return nil
	}
	return []metav1.OwnerReference{{Kind: owner.Kind, Name: owner.Name, Controller: owner.Controller}}
}

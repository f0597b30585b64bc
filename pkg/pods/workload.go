// What a pod is a part of, told without asking for its controllers.

package pods

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// templateHash is the label by which a Deployment's ReplicaSet, whose name ends in it, tells its pods
// (kubernetes.io/docs, "Pod-template-hash label").
const templateHash = "pod-template-hash"

// A CronJob's Jobs have the minute for which they were scheduled at the end of their names, since 1970 (kubernetes,
// pkg/controller/cronjob/utils.go, getJobName). Before 25,000,000 was 2017; a date, such as 20260101, is none.
var scheduled = regexp.MustCompile(`-(2[5-9]|[3-9][0-9])[0-9]{6}$`)

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
	return []metav1.OwnerReference{{Kind: short(owner.Kind), Name: short(owner.Name), Controller: owner.Controller}}
}

// short is as much as a name of Kubernetes may be long. Nobody checks the length of an owner's (kubernetes, apimachinery,
// pkg/api/validation/objectmeta.go), and who may create pods chooses it.
func short(name string) string { return name[:min(len(name), validation.DNS1123SubdomainMaxLength)] }

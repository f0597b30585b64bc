// Finding what a pod belongs to, without requesting its controllers.

package pods

import (
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// templateHash is the label with which a Deployment's ReplicaSet marks its pods; the ReplicaSet's name ends in the same hash
// (kubernetes.io/docs, "Pod-template-hash label").
const templateHash = "pod-template-hash"

// The names of a CronJob's Jobs end in the scheduled time, in minutes since 1970 (kubernetes, pkg/controller/cronjob/utils.go,
// getJobName). Numbers below 25,000,000 are before 2017; dates such as 20260101 don't match.
var scheduled = regexp.MustCompile(`-(2[5-9]|[3-9][0-9])[0-9]{6}$`)

// workloadOf returns the pod's controller or, where the controller's name shows that it has one itself, that one.
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

// controllerOf returns the only owner that counts, if there is one.
func controllerOf(p *corev1.Pod) []metav1.OwnerReference {
	owner := metav1.GetControllerOfNoCopy(p)
	if owner == nil {
		return nil
	}
	return []metav1.OwnerReference{{Kind: short(owner.Kind), Name: short(owner.Name), Controller: owner.Controller}}
}

// short cuts a name to the longest that Kubernetes allows. The length of an owner's name is not validated (kubernetes,
// apimachinery, pkg/api/validation/objectmeta.go), and anyone who may create pods chooses it.
func short(name string) string { return name[:min(len(name), validation.DNS1123SubdomainMaxLength)] }

// The examples in docs/examples: they parse, the chart knows every value in them, and what is said twice is the same.
package deploy_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/imds-guard/imds-guard/pkg/node"
)

const examples = "../docs/examples/"

// exampleKinds is what each example has in it; values.yaml has values.
var exampleKinds = map[string][]string{
	"argocd.yaml":                 {"Application/imds-guard"},
	"flux.yaml":                   {"Namespace/imds-guard", "OCIRepository/imds-guard", "HelmRelease/imds-guard"},
	"policy-host-network.yaml":    {"ValidatingAdmissionPolicy/imds-guard-host-network", "ValidatingAdmissionPolicyBinding/imds-guard-host-network"},
	"policy-startup-taint.yaml":   {"ValidatingAdmissionPolicy/imds-guard-startup-taint", "ValidatingAdmissionPolicyBinding/imds-guard-startup-taint"},
	"kyverno.yaml":                {"ValidatingPolicy/imds-guard-host-network", "ValidatingPolicy/imds-guard-startup-taint"},
	"cluster-network-policy.yaml": {"ClusterNetworkPolicy/no-imds"},
	"values.yaml":                 {"/"},
}

func example(t *testing.T, file string) documents {
	t.Helper()
	data, err := os.ReadFile(examples + file)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(data))
}

func TestExamples(t *testing.T) {
	files, err := filepath.Glob(examples + "*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if len(files) != len(exampleKinds) {
		t.Errorf("there are %v, and %d are tested", files, len(exampleKinds))
	}
	for file, kinds := range exampleKinds {
		t.Run(file, func(t *testing.T) { example(t, file).kinds(t, kinds...) })
	}
}

// The chart renders with the values of each example, so it knows all of them, and it is audit mode that comes of them.
func TestExampleValues(t *testing.T) {
	tested := map[string]any{
		"values.yaml": example(t, "values.yaml")["/"],
		"argocd.yaml": at(map[string]any(example(t, "argocd.yaml")), "Application/imds-guard spec source helm valuesObject"),
		"flux.yaml":   at(map[string]any(example(t, "flux.yaml")), "HelmRelease/imds-guard spec values"),
	}
	for file, values := range tested {
		t.Run(file, func(t *testing.T) {
			data, err := yaml.Marshal(values)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := exec.Command(helm(t), "template", "imds-guard", chart, "--namespace=imds-guard", "--values="+path).CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			docs := parse(t, string(out))
			docs.check(t, []check{{agent + "image", `"registry.example.com/imds-guard:v0.1.0"`}})
			for _, arg := range []string{"--mode=audit", "--interface=eni+,vlan+,veth+"} {
				if args := fmt.Sprint(at(map[string]any(docs), agent+"args")); !strings.Contains(args, arg) {
					t.Errorf("%s is not among %s", arg, args)
				}
			}
		})
	}
	if text, err := os.ReadFile(examples + "terraform.tf"); err != nil || !strings.Contains(string(text), `file("${path.module}/values.yaml")`) {
		t.Errorf("terraform.tf has values of its own, which nobody tests (%v)", err)
	}
}

// docs/comparison.md shows the policy of the VPC CNI that is a file here.
func TestExampleInTheComparison(t *testing.T) {
	text, err := os.ReadFile("../docs/comparison.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, block := range strings.Split(string(text), "```yaml\n")[1:] {
		manifest, _, _ := strings.Cut(block, "```")
		if !strings.Contains(manifest, "kind: ClusterNetworkPolicy") {
			continue
		}
		if shown, file := parse(t, manifest), example(t, "cluster-network-policy.yaml"); !reflect.DeepEqual(shown, file) {
			t.Errorf("it shows\n%v\nand the file has\n%v", shown, file)
		}
		return
	}
	t.Error("it shows none")
}

// Kyverno's policies say what those for the API server itself say, and both spare the namespaces without which a node can't be
// protected.
func TestExamplePoliciesAgree(t *testing.T) {
	const selector = `{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["kube-system","imds-guard"]}]}`
	kyverno := example(t, "kyverno.yaml")
	for _, name := range []string{"host-network", "startup-taint"} {
		t.Run(name, func(t *testing.T) {
			docs := example(t, "policy-"+name+".yaml")
			policy, binding := "ValidatingAdmissionPolicy/imds-guard-"+name+" spec ", "ValidatingAdmissionPolicyBinding/imds-guard-"+name+" spec "
			other := "ValidatingPolicy/imds-guard-" + name + " spec "
			docs.check(t, []check{
				{policy + "failurePolicy", `"Fail"`},
				{binding + "policyName", `"imds-guard-` + name + `"`},
				{binding + "validationActions", `["Deny"]`},
				{binding + "matchResources namespaceSelector", selector},
			})
			kyverno.check(t, []check{{other + "matchConstraints namespaceSelector", selector}, {other + "validationActions", `["Deny"]`}})
			for _, path := range []string{"matchConstraints resourceRules", "matchConditions", "validations 0 expression", "validations 0 message"} {
				ours, theirs := at(map[string]any(docs), policy+path), at(map[string]any(kyverno), other+path)
				if fmt.Sprint(ours) != fmt.Sprint(theirs) {
					t.Errorf("%s\n   ours %v\nKyverno %v", path, ours, theirs)
				}
			}
		})
	}
	expression := at(map[string]any(example(t, "policy-startup-taint.yaml")), "ValidatingAdmissionPolicy/imds-guard-startup-taint spec validations 0 expression")
	if text, _ := expression.(string); !slices.Contains(strings.Split(text, "'"), node.TaintKey) {
		t.Errorf("%s doesn't name the taint %s", text, node.TaintKey)
	}
}

// What to do about a workload.

package report

import (
	"slices"
	"strings"

	"github.com/imds-guard/imds-guard/pkg/request"
)

// remedies are what to do about each kind of document, the most important first. Kinds that are not listed are treated as
// request.Other.
var remedies = []struct{ document, do string }{
	{request.Credentials, "It uses the node's role: give its service account one of its own, with EKS Pod Identity or IRSA, and restart its pods."},
	{request.UserData, "Move what it needs from the user data into a Secret or a ConfigMap: pods should not read user data."},
	{request.Identity, "Pass it the region, the account and the instance as environment variables; " +
		"the downward API can supply the node's name."},
	{request.Network, "Pass it the pod's and the node's addresses through the downward API, and the VPC in its settings."},
	{request.Placement, "Set AWS_REGION. If an AWS SDK asks, also set AWS_EC2_METADATA_DISABLED=true."},
	{request.Other, "Check its documentation for a setting that replaces this lookup or turns it off."},
	{request.Token, "It asked for a token and then for nothing else. " + usually},
}

const (
	usually = "Usually this is an AWS SDK looking for credentials or a region: give its service account a role, " +
		"or set AWS_EC2_METADATA_DISABLED=true and AWS_REGION."
	unseenBlocked = "Its connections are refused before it can send a request, so what it wants is unknown; --mode=audit would show it. "
	unseenAudited = "What it asked for was not seen. "
	letThrough    = " If it must reach the endpoint, add its namespace to --host-network-namespaces."
)

// importance returns the rank of a kind of document, 0 for the most important.
func importance(document string) int {
	row := func(document string) int {
		return slices.IndexFunc(remedies, func(r struct{ document, do string }) bool { return r.document == document })
	}
	if i := row(document); i >= 0 {
		return i
	}
	return row(request.Other)
}

// Advice says what to do so that the workload no longer needs the endpoint: a sentence for each kind of document that it asked
// for, the most important first.
func (w Workload) Advice() string {
	asked := make([]bool, len(remedies))
	for _, r := range w.Requests {
		asked[importance(r.Document)] = true
	}
	var advice []string
	for i, r := range remedies {
		switch {
		case !asked[i]:
		case r.document == request.Token && len(advice) > 0: // every use of IMDSv2 starts with a token
		case r.document == request.Placement && asked[importance(request.Credentials)]: // giving it a role also sets AWS_REGION
		default:
			advice = append(advice, r.do)
		}
	}
	text := strings.Join(advice, " ")
	switch {
	case text != "":
	case w.Audited > 0:
		text = unseenAudited + usually
	default:
		text = unseenBlocked + usually
	}
	if w.HostNetwork {
		text += letThrough
	}
	return text
}

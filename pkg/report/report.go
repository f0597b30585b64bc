// Package report describes who asks for the endpoint: the report of one node's agent, the merged report of many nodes, and what
// to do about each workload.
package report

import (
	"time"

	"github.com/imds-guard/imds-guard/pkg/imds"
)

// Node is the report of one node's agent.
type Node struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Mode is enforce or audit.
	Mode string `json:"mode"`
	// Protected and Degraded are as in `imds-guard check`; Condition says why, in the words of the node's condition
	// IMDSProtected.
	Protected bool    `json:"protected"`
	Degraded  bool    `json:"degraded"`
	Condition string  `json:"condition"`
	Layers    []Layer `json:"layers"`
	// Since is when counting began: when the first agent that counts started after the node booted.
	Since time.Time `json:"since"`
	// Incomplete says why attempts are missing from the counts, or names are missing from pods; empty if neither is.
	Incomplete string     `json:"incomplete,omitempty"`
	Workloads  []Workload `json:"workloads"`
}

// Layer is the state of one layer in one family.
type Layer struct {
	Family imds.Family `json:"family"`
	Layer  string      `json:"layer"`
	State  string      `json:"state"`
	Detail string      `json:"detail,omitempty"`
}

// Workload is who asks: the controller of pods, or a bare pod.
type Workload struct {
	Namespace string `json:"namespace"`
	// Kind is the controller's, such as Deployment; Pod for a bare pod; empty if the API server has not named the pod yet, in
	// which case Name is its UID.
	Kind        string `json:"kind"`
	Name        string `json:"name"`
	HostNetwork bool   `json:"hostNetwork,omitempty"`
	// Pods is how many of its pods have asked.
	Pods int `json:"pods"`
	// Blocked and Audited are how many socket calls were refused, and how many were let through that would have been refused.
	Blocked uint64    `json:"blocked"`
	Audited uint64    `json:"audited"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	// Commands are the names of processes that asked (comm, at most 15 bytes), sorted.
	Commands []string `json:"commands,omitempty"`
	// Requests are what was asked for. They are seen in audit mode only, since a socket that is refused sends none.
	Requests []Request `json:"requests,omitempty"`
}

// Request is one kind of request.
type Request struct {
	// Version is IMDSv1 or IMDSv2, or unknown if not enough of the request was seen: see pkg/request.
	Version string `json:"version"`
	// Document is the kind of document: see pkg/request.
	Document string `json:"document"`
	// Agent is the first product in the client's User-Agent, such as Boto3/1.26.0; empty if there is none.
	Agent string `json:"agent,omitempty"`
	Count uint64 `json:"count"`
}
